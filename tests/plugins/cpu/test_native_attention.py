"""Native paged attention against the torch backend, which has oracles of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.attention.torch_paged import TorchAttention
from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo_cpu.attention import NativeAttention

pytestmark = pytest.mark.usefixtures("built")


def batch(rng: np.random.Generator, counts: list[int], lengths: list[int], block: int) -> tuple[StepBatch, int]:
    """Rows of ``lengths`` keys, the last ``counts`` of them new, in blocks that lie anywhere."""
    needed = [-(-length // block) for length in lengths]
    order, tables = rng.permutation(sum(needed)) + 1, np.zeros((len(counts), max(needed)), np.int32)
    slots, taken = [], 0
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        tables[row, : needed[row]] = order[taken : taken + needed[row]]
        taken += needed[row]
        slots += [int(tables[row, at // block]) * block + at % block for at in range(length - count, length)]
    starts = np.concatenate(([0], np.cumsum(counts)))
    made = StepBatch(
        num_tokens=len(slots),
        num_rows=len(counts),
        decodes=sum(count == 1 for count in counts),
        positions=torch.zeros(len(slots), dtype=torch.int64),
        slots=torch.tensor(slots),
        block_tables=torch.from_numpy(tables),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        query_starts=torch.from_numpy(starts).int(),
        seq_lens_host=np.array(lengths),
        query_lens_host=np.array(counts),
        block_tables_host=tables,
    )
    return made, sum(needed) + 1


def as_torch(cache: Tensor) -> Tensor:
    """[2, blocks, kv_heads, block, size] as the torch backend lays it out."""
    return cache.transpose(2, 3).flatten(3).contiguous()


CASES: list[tuple[list[int], list[int], dict[str, Any]]] = [
    ([1, 1, 1], [1, 70, 200], {}),
    ([1, 5, 64, 130], [90, 5, 64, 200], {}),
    ([1, 33], [150, 40], {"sliding_window": 20}),
    ([1, 9], [70, 80], {"soft_cap": 5.0}),
]


@pytest.mark.parametrize(("counts", "lengths", "special"), CASES)
@pytest.mark.parametrize(("heads", "kv_heads", "size", "block"), [(9, 3, 64, 16), (4, 4, 24, 4), (32, 1, 16, 32)])
def test_equals_torch(
    counts: list[int], lengths: list[int], special: dict[str, Any], heads: int, kv_heads: int, size: int, block: int
) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(
        layer=0, num_heads=heads, num_kv_heads=kv_heads, head_dim=size, scale=size**-0.5, **special
    )
    ctx: Any = SimpleNamespace(
        block_size=block, dtype="float32", kv_dtype="float32", device=SimpleNamespace(torch_name="cpu")
    )
    step, blocks = batch(np.random.default_rng(1), counts, lengths, block)
    native, plain = NativeAttention(ctx, 2), TorchAttention(ctx)
    cache = torch.randn(native.kv_shape(spec, blocks))
    other = as_torch(cache)
    merged = torch.randn(step.num_tokens, heads + 2 * kv_heads, size)
    parts = merged[:, :heads], merged[:, heads : heads + kv_heads], merged[:, heads + kv_heads :]
    answer = native.forward(native.plan(step), spec, *parts, cache)
    expected = plain.forward(plain.plan(step), spec, *parts, other)
    assert torch.equal(as_torch(cache), other)
    assert (answer - expected).abs().max() < 2e-5


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(layer=0, num_heads=9, num_kv_heads=3, head_dim=64, scale=0.125)
    ctx: Any = SimpleNamespace(block_size=16)
    native = NativeAttention(ctx, 2)
    step, blocks = batch(np.random.default_rng(1), [1, 1, 20], [170, 3, 90], 16)
    cache = torch.randn(native.kv_shape(spec, blocks))
    query, key, value = torch.randn(22, 9, 64), torch.randn(22, 3, 64), torch.randn(22, 3, 64)
    together = native.forward(native.plan(step), spec, query, key, value, cache)
    starts = [0, 1, 2, 22]
    for row in range(3):
        mine = slice(starts[row], starts[row + 1])
        alone = StepBatch(
            num_tokens=starts[row + 1] - starts[row],
            num_rows=1,
            decodes=0,
            positions=step.positions[mine],
            slots=step.slots[mine].contiguous(),
            block_tables=step.block_tables[row : row + 1],
            seq_lens=step.seq_lens[row : row + 1],
            query_starts=step.query_starts[:2],
            seq_lens_host=step.seq_lens_host[row : row + 1],
            query_lens_host=step.query_lens_host[row : row + 1],
            block_tables_host=step.block_tables_host[row : row + 1],
        )
        answer = native.forward(native.plan(alone), spec, query[mine], key[mine], value[mine], cache)
        assert torch.equal(answer, together[mine])
