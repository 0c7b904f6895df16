"""The Triton attention backend on a GPU: the cases of ``tests/plugins/attention`` in all types, and CUDA graphs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).parents[1] / "plugins/attention/attention_cases.py"
_spec = importlib.util.spec_from_file_location("attention_cases", CASES)
assert _spec
assert _spec.loader
cases = importlib.util.module_from_spec(_spec)
sys.modules["attention_cases"] = cases
_spec.loader.exec_module(cases)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
LARGE = [
    cases.Case("long prefill", (cases.Row(3000, 0),), kv_heads=8, head_dim=128, processors=132),
    cases.Case("long chunk", (cases.Row(1000, 3000), cases.Row(300, 17)), kv_heads=8, head_dim=128, processors=132),
    cases.Case("many decodes", cases.ones(*range(0, 4000, 61)), kv_heads=8, head_dim=128, processors=132),
    cases.Case(
        "many prefills", tuple(cases.Row(n, n % 7 * 16) for n in range(2, 400, 9)), kv_heads=2, processors=132
    ),
    cases.Case("speculation", tuple(cases.Row(4, n) for n in range(0, 3000, 97)), kv_heads=8, head_dim=128),
]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


FEW = [cases.DECODE[1], cases.QUERIES[1], cases.PREFILL[1], cases.MIXED[2], LARGE[3]]


@pytest.mark.parametrize("case", [*cases.ALL, *LARGE], ids=name)
def test_portable(case):
    cases.check(case, torch.bfloat16, "cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", FEW, ids=name)
def test_other_types(case, dtype):
    cases.check(case, dtype, "cuda", hopper=HOPPER and dtype == torch.float16)


@pytest.mark.skipif(not HOPPER, reason="needs compute capability 9.0")
@pytest.mark.parametrize("case", [*cases.PREFILL, *cases.MIXED, cases.QUERIES[4], *LARGE], ids=name)
def test_hopper(case):
    cases.check(case, torch.bfloat16, "cuda", hopper=True)


@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
def test_head_sizes(size):
    rows = (cases.Row(1, 300), cases.Row(1, 40), cases.Row(150, 60), cases.Row(40, 0))
    case = cases.Case(f"head size {size}", rows, head_dim=size, processors=20)
    for hopper in {False, HOPPER}:
        cases.check(case, torch.bfloat16, "cuda", hopper=hopper)


@pytest.mark.parametrize("queries", [1, 4])
def test_graph_replays_with_other_lengths(queries):
    """A graph captured on short rows answers for long ones: nothing but device tensors says how long they are."""
    from octavo_attention.backend import TritonAttention

    rows = tuple(cases.Row(queries, 2) for _ in range(6))
    small = replace(cases.Case("captured", rows, head_dim=128, processors=8), padding=2)
    large = replace(small, rows=tuple(cases.Row(queries, n) for n in (700, 3, 15, 16, 399, 1201)))
    step = cases.make_step(large, torch.bfloat16, "cuda", seed=1)
    short = cases.make_step(small, torch.bfloat16, "cuda")
    batch = step.batch
    tables, lengths, slots = batch.block_tables.clone(), batch.seq_lens.clone(), batch.slots.clone()
    batch.block_tables.zero_()
    batch.block_tables[:, : short.batch.block_tables.shape[1]] = short.batch.block_tables
    batch.seq_lens.copy_(short.batch.seq_lens)
    batch.slots.fill_(-1)
    backend = TritonAttention(
        block_size=16, group=large.group, device=torch.device("cuda"), processors=8, hopper=HOPPER
    )  # fmt: skip

    def forward() -> torch.Tensor:
        plan = backend.plan(batch)
        return backend.forward(plan, large.spec, step.query, step.key, step.value, step.cache)

    forward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward()
    batch.block_tables.copy_(tables)
    batch.seq_lens.copy_(lengths)
    batch.slots.copy_(slots)
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        cases.compare(step, out)


def test_no_synchronisation():
    """Planning and running a step never makes the host wait for the device."""
    from octavo_attention.backend import TritonAttention

    case = cases.MIXED[0]
    step = cases.make_step(case, torch.bfloat16, "cuda")
    backend = TritonAttention(
        block_size=16, group=case.group, device=torch.device("cuda"), processors=8, hopper=HOPPER
    )  # fmt: skip
    for attempt in range(2):  # the first compiles and loads
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            backend.forward(backend.plan(step.batch), case.spec, step.query, step.key, step.value, step.cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
