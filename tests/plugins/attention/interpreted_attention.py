"""The kernels under Triton's interpreter, on the CPU. Run through ``test_triton_attention.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("attention_cases", Path(__file__).with_name("attention_cases.py"))
assert _spec
assert _spec.loader
cases = importlib.util.module_from_spec(_spec)
sys.modules["attention_cases"] = cases
_spec.loader.exec_module(cases)


@pytest.mark.parametrize("case", cases.DECODE, ids=lambda case: case.name)
def test_decode(case):
    cases.check(case, torch.float32)


@pytest.mark.parametrize("case", cases.QUERIES, ids=lambda case: case.name)
def test_queries(case):
    cases.check(case, torch.float32)


@pytest.mark.parametrize("case", cases.PREFILL, ids=lambda case: case.name)
def test_prefill(case):
    cases.check(case, torch.float32)


@pytest.mark.parametrize("case", cases.MIXED, ids=lambda case: case.name)
def test_mixed(case):
    cases.check(case, torch.float32)


@pytest.mark.parametrize("case", [cases.DECODE[1], cases.QUERIES[1], cases.PREFILL[1], cases.MIXED[2]])
def test_float16(case):
    cases.check(case, torch.float16)
