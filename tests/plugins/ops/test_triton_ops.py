"""The fused operations against the torch reference, under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_equal_the_reference(dtype: str) -> None:
    # In a process of its own: the interpreter is chosen when kernels are defined.
    cases = Path(__file__).with_name("cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(cases), "cpu", dtype], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
