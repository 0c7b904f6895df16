"""The Triton backend against the torch reference, under Triton's interpreter and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def run(device: str, dtype: str, **environment: str) -> None:
    # In a process of its own: the interpreter is chosen when kernels are defined.
    cases = Path(__file__).with_name("lora_cases.py")
    done = subprocess.run(
        [sys.executable, str(cases), device, dtype],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_interpreted_kernels_equal_the_reference(dtype: str) -> None:
    run("cpu", dtype, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernels_equal_the_reference_on_a_gpu(dtype: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run("cuda", dtype)
