"""The torch backend against attention written out in float64, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from octavo.attention.torch_paged import TorchAttention
from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.records import Context, DeviceProfile, ModelProfile

DEVICE = DeviceProfile(type="cpu", index=0, name="cpu", capability=None, total_memory=0, free_memory=0, cores=1)


@dataclass
class Case:
    """Rows as (cached tokens, new tokens)."""

    rows: list[tuple[int, int]]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block: int = 16
    window: int | None = None
    cap: float | None = None


CASES = {
    "decode": Case([(5, 1), (0, 1), (40, 1)]),
    "decode, uneven": Case([(3, 1), (200, 1), (190, 1), (1, 1), (16, 1), (15, 1)]),
    "prompts": Case([(0, 17), (0, 2), (0, 33)]),
    "chunk after context": Case([(32, 9), (5, 20)]),
    "mixed": Case([(7, 1), (80, 1), (0, 30), (16, 16)], heads=6, kv_heads=1),
    "no grouping": Case([(9, 1), (0, 12)], heads=3, kv_heads=3, dim=8),
    "small blocks": Case([(9, 1), (6, 7)], block=4),
    "window": Case([(50, 1), (3, 1), (0, 40), (30, 12)], window=8),
    "soft cap": Case([(20, 1), (0, 10), (12, 5)], cap=3.0),
}


def context(case: Case, dtype: str) -> Context:
    model = ModelProfile.__new__(ModelProfile)
    return Context(
        model=model,
        device=DEVICE,
        dtype=dtype,
        kv_dtype=dtype,
        block_size=case.block,
        max_length=512,
        max_sequences=8,
        max_batch_tokens=512,
    )


def expected(case: Case, row: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """float64; ``q`` [new, heads, dim], ``k`` and ``v`` [all, kv_heads, dim]."""
    cached, new = case.rows[row]
    out = np.zeros(q.shape)
    for token in range(new):
        position = cached + token
        first = 0 if case.window is None else max(0, position - case.window + 1)
        for head in range(case.heads):
            group = head * case.kv_heads // case.heads
            scores = k[first : position + 1, group] @ q[token, head] * case.dim**-0.5
            if case.cap is not None:
                scores = np.tanh(scores / case.cap) * case.cap
            weights = np.exp(scores - scores.max())
            out[token, head] = weights @ v[first : position + 1, group] / weights.sum()
    return out.reshape(new, -1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "fp8"])
@pytest.mark.parametrize("name", CASES)
def test_equals_float64(name: str, dtype: str) -> None:
    """An 8-bit cache must give what float64 gives for keys and values as it holds them."""
    case, rng = CASES[name], np.random.default_rng(3)
    eight = dtype == "fp8"
    dtype = "float32" if eight else dtype
    scales = (0.02, 0.3) if eight else (1.0, 1.0)
    backend = TorchAttention(context(case, dtype))
    spec = AttentionSpec(
        layer=0,
        num_heads=case.heads,
        num_kv_heads=case.kv_heads,
        head_dim=case.dim,
        scale=case.dim**-0.5,
        sliding_window=case.window,
        soft_cap=case.cap,
        key_scale=scales[0],
        value_scale=scales[1],
    )
    lengths = np.array([cached + new for cached, new in case.rows])
    counts = np.array([new for _, new in case.rows])
    widths = -(-lengths // case.block)
    blocks = rng.permutation(np.arange(1, widths.sum() + 1)).astype(np.int32)
    tables = np.zeros((len(case.rows), widths.max()), np.int32)
    for row, width in enumerate(widths):
        tables[row, :width], blocks = blocks[:width], blocks[width:]

    def slots(row: int, positions: np.ndarray) -> np.ndarray:
        return tables[row, positions // case.block].astype(np.int64) * case.block + positions % case.block

    torch_dtype = getattr(torch, dtype)
    keys = [rng.standard_normal((n, case.kv_heads, case.dim)) for n in lengths]
    values = [rng.standard_normal((n, case.kv_heads, case.dim)) for n in lengths]
    queries = [rng.standard_normal((n, case.heads, case.dim)) for n in counts]
    rounded = [[torch.tensor(x, dtype=torch_dtype) for x in part] for part in (queries, keys, values)]
    shape = backend.kv_shape(spec, int(widths.sum()) + 1)
    cache = torch.full(shape, 9.0).to(torch.float8_e4m3fn if eight else torch_dtype)
    if eight:
        for part, scale in zip(rounded[1:], scales, strict=True):
            part[:] = [(x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale for x in part]
    for row, (cached, _) in enumerate(case.rows):
        where = torch.from_numpy(slots(row, np.arange(cached)))
        for side, part in ((0, rounded[1]), (1, rounded[2])):
            held = (part[row][:cached].flatten(1) / scales[side]).to(cache.dtype)
            rows = cache[side].view(-1, case.kv_heads * case.dim)
            rows.view(torch.uint8 if eight else torch_dtype)[where] = held.view(
                torch.uint8 if eight else torch_dtype
            )
    positions = [np.arange(cached, cached + new) for cached, new in case.rows]
    batch = StepBatch(
        num_tokens=int(counts.sum()),
        num_rows=len(case.rows),
        decodes=int((counts == 1).sum()),
        positions=torch.from_numpy(np.concatenate(positions)),
        slots=torch.from_numpy(np.concatenate([slots(row, at) for row, at in enumerate(positions)])),
        block_tables=torch.from_numpy(tables),
        seq_lens=torch.from_numpy(lengths.astype(np.int32)),
        query_starts=torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32)),
        seq_lens_host=lengths,
        query_lens_host=counts,
        block_tables_host=tables,
    )
    new = [torch.cat([part[row][-counts[row] :] for row in range(len(counts))]) for part in rounded]
    answer = backend.forward(backend.plan(batch), spec, *new, cache)
    truth = np.concatenate(
        [expected(case, row, *(part[row].double().numpy() for part in rounded)) for row in range(len(case.rows))]
    )
    error = np.linalg.norm(answer.double().numpy() - truth) / np.linalg.norm(truth)
    assert error < (1e-6 if dtype == "float32" else 2e-3)
