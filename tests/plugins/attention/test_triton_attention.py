"""The Triton kernels without a GPU: under the interpreter against float64, and compiled for Hopper."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the same cases on the device")
@pytest.mark.parametrize(
    "group",
    ["test_decode", "test_queries", "test_prefill", "test_mixed", "test_eight_bits", "test_float16", "test_hopper"],
)
def test_under_the_interpreter(group):
    """In a process of its own: the interpreter must be chosen before Triton is imported, and stays chosen."""
    cases = f"{HERE / 'interpreted_attention.py'}::{group}"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cases, interpret=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_compiled_for_hopper():
    """Every kernel compiles for sm_90; head sizes 64 and 128 keep their accumulators in registers."""
    done = run(str(HERE / "compile_attention.py"), "--quick", interpret=False)
    assert done.returncode == 0, done.stderr[-4000:]
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(made) == 11
    for kernel in made:
        name = kernel["kernel"]
        # The Hopper kernel puts a few addresses aside while it multiplies: none in its loop.
        assert kernel["stack"] <= (128 if name == "hopper 128" else 0), kernel
        assert kernel["shared"] <= 227 * 1024
        assert (kernel["wgmma"] > 0) == (name.startswith(("prefill", "hopper"))), kernel
