"""Cases for the Triton kernels and a float64 reference, the same under the interpreter and on a GPU.

Not collected by its name: ``test_triton_attention.py`` runs it in a process of its own, where the interpreter is on
before Triton is imported; ``tests/gpu/test_attention_gpu.py`` runs it on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from octavo.contracts.attention import AttentionSpec, StepBatch

# bf16: rounding the answer costs 1.1e-3, rounding the weights of the values about as much again.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2.5e-3}


@dataclass(frozen=True)
class Row:
    """``new`` tokens behind ``context`` cached ones; it may share the first ``shared`` tokens of another row."""

    new: int
    context: int
    prefix_of: int | None = None
    shared: int = 0


@dataclass(frozen=True)
class Case:
    name: str
    rows: tuple[Row, ...]
    group: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None
    processors: int = 3
    padding: int = 0  # rows of a captured batch that stand for nobody
    strided: bool = False  # query, key and value as slices of one tensor
    scales: tuple[float, float] | None = None  # of keys and values in an FP8 cache

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            layer=0,
            num_heads=self.group * self.kv_heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            scale=self.scale or 1 / math.sqrt(self.head_dim),
            sliding_window=self.window,
            soft_cap=self.soft_cap,
            key_scale=self.scales[0] if self.scales else 1.0,
            value_scale=self.scales[1] if self.scales else 1.0,
        )


def ones(*contexts: int) -> tuple[Row, ...]:
    return tuple(Row(1, context) for context in contexts)


DECODE = [
    Case("one token of context", ones(0, 1, 15, 16, 17)),
    Case("ragged", ones(70, 3, 200, 31, 0), processors=2),
    Case("one program", ones(40, 100), processors=1),
    Case("more programs than tiles", ones(130), processors=20),
    Case("group of 1", ones(50, 20, 90), group=1, kv_heads=3),
    Case("group of 3", ones(50, 20, 90), group=3),
    Case("group of 8", ones(50, 140), group=8, kv_heads=1),
    Case("head size 80", ones(50, 200), head_dim=80),
    Case("head size 256", ones(30, 77), head_dim=256, kv_heads=1),
    Case("blocks of 64", ones(50, 200), block_size=64),
    Case("blocks of 8", ones(5, 70), block_size=8),
    Case("window", ones(5, 63, 64, 300), window=64),
    Case("soft cap", ones(9, 100), soft_cap=3.0, scale=1.0),
    Case("padding", ones(33, 5), padding=3),
    Case("strided", ones(33, 5), strided=True),
]
QUERIES = [
    Case("two", (Row(2, 40), Row(2, 0), Row(2, 127)), group=3),
    Case("eight", (Row(8, 130), Row(8, 3)), group=4, processors=2),
    Case("five and padding", (Row(5, 62), Row(5, 1)), padding=2),
    Case("window", (Row(4, 200), Row(4, 0)), window=33, processors=8),
    Case("too many for one tile", (Row(8, 20), Row(8, 3)), group=16, kv_heads=1),
]
PREFILL = [
    Case("fresh", (Row(70, 0), Row(5, 0), Row(33, 0))),
    Case("behind a context", (Row(40, 77), Row(2, 150), Row(17, 16)), group=1),
    Case("group of 3", (Row(50, 20), Row(90, 0)), group=3),
    Case("group of 8", (Row(20, 30), Row(9, 0)), group=8, kv_heads=1),
    Case("head size 96", (Row(20, 30), Row(9, 0)), head_dim=96),
    Case("head size 128", (Row(140, 10),), head_dim=128, kv_heads=1, group=2),
    Case("head size 192", (Row(20, 50),), head_dim=192, kv_heads=1),
    Case("blocks of 64", (Row(80, 70), Row(3, 0)), block_size=64),
    Case("blocks of 256", (Row(80, 300),), block_size=256),
    Case("window", (Row(90, 100), Row(20, 0)), window=40),
    Case("soft cap", (Row(50, 20), Row(7, 0)), soft_cap=2.0, scale=1.0),
    Case("strided", (Row(30, 20), Row(7, 0)), strided=True),
]
MIXED = [
    Case("decodes and prefills", (*ones(30, 77), Row(40, 0), Row(9, 60))),
    Case("window", (*ones(130, 7), Row(33, 64)), window=50, group=1),
    Case("one block for many", (*ones(0, 40), Row(1, 35, prefix_of=4, shared=32), Row(20, 32, 4, 32), Row(48, 0))),
]
EIGHT_BITS = [
    Case("FP8 decodes", ones(70, 3, 200, 31, 0), scales=(1 / 64, 0.5), processors=2),
    Case("FP8 decodes, padded", ones(33, 5), scales=(1.0, 1.0), padding=3, head_dim=128),
    Case("FP8 queries", (Row(5, 62), Row(5, 1)), scales=(0.125, 1 / 32)),
    Case("FP8 prefills", (Row(40, 77), Row(2, 150), Row(17, 0)), scales=(1 / 64, 4.0)),
    Case("FP8 mixed, window", (*ones(130, 7), Row(33, 64)), scales=(1 / 64, 0.125), window=50, soft_cap=3.0),
]
ALL = [*DECODE, *QUERIES, *PREFILL, *MIXED, *EIGHT_BITS]


@dataclass
class Step:
    """A case filled with numbers: what the backend gets, and each row's whole history for the reference."""

    case: Case
    batch: StepBatch
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cache: torch.Tensor
    histories: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    owned: list[list[int]] = field(default_factory=list)


def make_step(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Step:
    """Random numbers, blocks in random order, and NaN wherever the cache holds nothing."""
    rng = torch.Generator().manual_seed(seed)
    heads, kv, dim, size = case.group * case.kv_heads, case.kv_heads, case.head_dim, case.block_size
    count = sum(-(-(row.new + row.context) // size) for row in case.rows) + 2
    free = (torch.randperm(count - 1, generator=rng) + 1).tolist()
    kept = torch.float8_e4m3fn if case.scales else dtype
    scales = case.scales or (1.0, 1.0)
    cache = torch.full((count, kv, 2, size, dim), math.nan).to(kept)
    histories: list[tuple[torch.Tensor, torch.Tensor]] = []
    blocks: list[list[int]] = []
    order = sorted(range(len(case.rows)), key=lambda r: case.rows[r].prefix_of is not None)
    made: dict[int, tuple[tuple[torch.Tensor, torch.Tensor], list[int]]] = {}
    for r in order:
        row = case.rows[r]
        length = row.new + row.context
        k, v = (torch.randn(length, kv, dim, generator=rng).to(dtype) for _ in range(2))
        if case.scales:  # numbers that the cache holds exactly: rounding is not attention's
            k, v = ((x / s).to(kept).to(dtype) * s for x, s in zip((k, v), scales, strict=True))
        mine: list[int] = []
        if row.prefix_of is not None:
            (k0, v0), donor = made[row.prefix_of]
            k[: row.shared], v[: row.shared] = k0[: row.shared], v0[: row.shared]
            mine = donor[: row.shared // size]
        mine = mine + [free.pop() for _ in range(-(-length // size) - len(mine))]
        made[r] = ((k, v), mine)
    for r, row in enumerate(case.rows):
        (k, v), mine = made[r]
        histories.append((k, v))
        blocks.append(mine)
        begin = row.shared if row.prefix_of is not None else 0  # shared tokens are computed in this very step
        for n in range(begin, row.context):
            cache[mine[n // size], :, 0, n % size] = stored(k[n], cache, scales[0])
            cache[mine[n // size], :, 1, n % size] = stored(v[n], cache, scales[1])
    new = [row.new for row in case.rows]
    key = torch.cat([k[len(k) - n :] for (k, _), n in zip(histories, new, strict=True)])
    value = torch.cat([v[len(v) - n :] for (_, v), n in zip(histories, new, strict=True)])
    query = torch.randn(len(key), heads, dim, generator=rng).to(dtype)
    batch = _batch(case, blocks, device)
    pad = batch.num_tokens - len(key)
    query, key, value = (torch.cat([t, torch.zeros(pad, *t.shape[1:], dtype=dtype)]) for t in (query, key, value))
    if case.strided:
        packed = torch.cat([query, key, value], dim=1).to(device)
        query, key, value = packed.split([heads, kv, kv], dim=1)
    query, key, value, cache = (t.to(device) for t in (query, key, value, cache))
    return Step(case, batch, query, key, value, cache, histories, blocks)


def stored(new: torch.Tensor, cache: torch.Tensor, scale: float) -> torch.Tensor:
    """Keys or values as the cache holds them."""
    return new.to(cache.dtype) if cache.element_size() > 1 else (new.float() / scale).to(cache.dtype)


def _batch(case: Case, blocks: list[list[int]], device: str) -> StepBatch:
    size = case.block_size
    uniform = case.rows[0].new
    query_lens = np.array([row.new for row in case.rows] + [uniform] * case.padding, dtype=np.int32)
    seq_lens = np.array([row.new + row.context for row in case.rows] + [0] * case.padding, dtype=np.int32)
    tables = np.zeros((len(query_lens), max(map(len, blocks)) + 1), dtype=np.int32)
    slots, positions = [], []
    for r, row in enumerate(case.rows):
        tables[r, : len(blocks[r])] = blocks[r]
        for n in range(row.context, row.context + row.new):
            slots.append(blocks[r][n // size] * size + n % size)
            positions.append(n)
    pad = uniform * case.padding
    decodes = int((np.cumsum(query_lens != 1) == 0).sum())
    return StepBatch(
        num_tokens=len(slots) + pad,
        num_rows=len(query_lens),
        decodes=decodes,
        positions=torch.tensor(positions + [0] * pad, device=device),
        slots=torch.tensor(slots + [-1] * pad, device=device),
        block_tables=torch.tensor(tables, device=device),
        seq_lens=torch.tensor(seq_lens, device=device),
        query_starts=torch.tensor(np.concatenate([[0], np.cumsum(query_lens)]), dtype=torch.int32, device=device),
        seq_lens_host=seq_lens,
        query_lens_host=query_lens,
        block_tables_host=tables,
    )


def reference(step: Step) -> torch.Tensor:
    """Plain attention in float64 over each row's history. [real tokens, heads, head_dim]."""
    spec, outs, at = step.case.spec, [], 0
    for row, (k, v) in zip(step.case.rows, step.histories, strict=True):
        q = step.query[at : at + row.new].double().cpu()
        at += row.new
        keys = k.double().repeat_interleave(step.case.group, dim=1)
        values = v.double().repeat_interleave(step.case.group, dim=1)
        logits = torch.einsum("qhd,khd->hqk", q, keys) * spec.scale
        if spec.soft_cap:
            logits = spec.soft_cap * torch.tanh(logits / spec.soft_cap)
        distance = (row.context + torch.arange(row.new))[:, None] - torch.arange(row.new + row.context)[None, :]
        hidden = distance < 0
        if spec.sliding_window:
            hidden |= distance >= spec.sliding_window
        weights = logits.masked_fill(hidden, -math.inf).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outs)


def check(case: Case, dtype: torch.dtype, device: str = "cpu", hopper: bool = False) -> None:
    """Run a step and compare it with the reference; then again with other queries: nothing may be left over."""
    from octavo_attention.backend import TritonAttention

    step = make_step(case, dtype, device)
    backend = TritonAttention(
        block_size=case.block_size,
        group=case.group,
        device=torch.device(device),
        processors=case.processors,
        hopper=hopper,
    )
    assert step.cache.shape == backend.kv_shape(case.spec, step.cache.shape[0])
    before = step.cache.clone()
    for _ in range(2):
        step.query.neg_()
        plan = backend.plan(step.batch)
        out = backend.forward(plan, case.spec, step.query, step.key, step.value, step.cache)
        compare(step, out)
    check_cache(step, before)


def compare(step: Step, out: torch.Tensor) -> None:
    """Within tolerance of the reference in norm, and zero, not NaN, for padding rows."""
    expected = reference(step)
    assert out.dtype == step.query.dtype
    assert out.shape == (step.query.shape[0], step.query.shape[1] * step.query.shape[2])
    got = out.view(step.query.shape).double().cpu()
    real = got[: len(expected)]
    error = (real - expected).norm() / expected.norm()
    assert error < TOLERANCE[step.query.dtype], f"relative error {error:.2e}"
    worst = (real - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert worst.max() < 4 * TOLERANCE[step.query.dtype], f"token {worst.argmax()}: {worst.max():.2e}"
    assert (got[len(expected) :] == 0).all()


def check_cache(step: Step, before: torch.Tensor) -> None:
    """The step's keys and values are in their slots; nothing else changed, but the ends of rows' last blocks."""
    size = step.case.block_size
    expected, got = before.cpu(), step.cache.cpu().clone()
    for token, slot in enumerate(step.batch.slots.tolist()):
        if slot >= 0:
            scales = step.case.scales or (1.0, 1.0)
            expected[slot // size, :, 0, slot % size] = stored(step.key[token].cpu(), expected, scales[0])
            expected[slot // size, :, 1, slot % size] = stored(step.value[token].cpu(), expected, scales[1])
    for blocks, length in zip(step.owned, step.batch.seq_lens_host.tolist(), strict=False):
        if length % size:
            got[blocks[-1], :, :, length % size :] = math.nan
    assert torch.equal(got.float().nan_to_num(777.0), expected.float().nan_to_num(777.0))
