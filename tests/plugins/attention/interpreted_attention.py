"""The kernels under Triton's interpreter, on the CPU. Run through ``test_triton_attention.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def load(name: str) -> ModuleType:
    """Import a file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


cases = load("attention_cases")


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


@pytest.mark.parametrize("case", cases.EIGHT_BITS, ids=lambda case: case.name)
def test_eight_bits(case):
    cases.check(case, torch.float32)


@pytest.mark.parametrize("case", [cases.DECODE[1], cases.QUERIES[1], cases.PREFILL[1], cases.MIXED[2]])
def test_float16(case):
    cases.check(case, torch.float16)


@pytest.fixture(scope="module")
def emulated():
    """Gluon has no interpreter: the Hopper kernel runs over a small emulation of it."""
    kernel, launch = "octavo_attention.kernels.prefill_hopper", "octavo_attention.launch_hopper"
    load("gluon_emulator").import_over_emulation(kernel, launch)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", [*cases.PREFILL, *cases.MIXED, cases.QUERIES[4]], ids=lambda case: case.name)
def test_hopper(case):
    cases.check(case, torch.float16, hopper=True)
