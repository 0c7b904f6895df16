"""The kernels over grouped weights on a GPU: the cases of the interpreter, in all types and with fast unpacking."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu


def _cases():
    path = Path(__file__).parents[1] / "plugins/quant/grouped_cases.py"
    spec = importlib.util.spec_from_file_location("grouped_cases", path)
    assert spec
    assert spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_cases(dtype: torch.dtype) -> None:
    assert _cases().run("cuda", dtype, step=1 if dtype == torch.bfloat16 else 4)  # each costs a compilation


@pytest.mark.parametrize("tokens", [1, 17, 64, 100, 700])
def test_stored_tiles_and_graphs(tokens: int) -> None:
    from octavo_quant.grouped import grouped_linear, pack_grouped, unpack_grouped

    torch.manual_seed(0)
    rows, width = 1536, 2048
    codes = torch.randint(0, 16, (rows, width), dtype=torch.uint8, device="cuda")
    scales, zeros = torch.rand(rows, 16, device="cuda") * 0.01, torch.randint(0, 16, (rows, 16), device="cuda")
    permutation = torch.randperm(width, device="cuda")
    made = pack_grouped(codes, scales, zeros, bits=4, group_size=128, permutation=permutation, dtype=torch.bfloat16)
    assert made.words is not None
    x = torch.randn(tokens, width, dtype=torch.bfloat16, device="cuda")
    bias = torch.randn(rows, dtype=torch.bfloat16, device="cuda")
    expected = x.double() @ unpack_grouped(made).double().T + bias.double()
    found = grouped_linear(x, made, bias)
    assert float((found.double() - expected).norm() / expected.norm()) < 5e-3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = grouped_linear(x, made, bias)
    for _ in range(3):
        again.zero_()
        graph.replay()
        assert torch.equal(again, found)
