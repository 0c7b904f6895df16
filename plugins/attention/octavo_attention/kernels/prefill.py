"""Prefill: rows with any number of new tokens behind any cached context, read through the block table."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from octavo_attention.kernels.common import capped, page_offsets, softmax_step


@triton.jit
def _attend(
    q,
    high,
    norm,
    acc,
    cache,
    table,
    head,
    length,
    position,
    lo,
    hi,
    scale,
    soft_cap,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    d = tl.arange(0, DIM)
    for start in range(lo, hi, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = page_offsets(table, n, length, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        k_at = cache + at[None, :] + d[:, None]
        v_at = cache + BLOCK_SIZE * HEAD_DIM + at[:, None] + d[None, :]
        if MASKED:
            live = n < length
            k = tl.load(k_at, mask=live[None, :] & (d < HEAD_DIM)[:, None], other=0.0)
            v = tl.load(v_at, mask=live[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        elif DIM != HEAD_DIM:
            k = tl.load(k_at, mask=(d < HEAD_DIM)[:, None], other=0.0)
            v = tl.load(v_at, mask=(d < HEAD_DIM)[None, :], other=0.0)
        else:
            k = tl.load(k_at)
            v = tl.load(v_at)
        s = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)
        if SOFT_CAP:
            s = capped(s, scale, soft_cap)
        if MASKED:
            seen = n[None, :] <= position[:, None]
            if WINDOW > 0:
                seen = seen & (n[None, :] > position[:, None] - WINDOW)
            s = tl.where(seen, s, float("-inf"))
        p, high, norm, shrink = softmax_step(s, high, norm, 1.0 if SOFT_CAP else scale)
        acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
    return high, norm, acc


@triton.jit(do_not_specialize=["table_stride"])
def prefill_kernel(
    query,
    cache,
    tables,
    lengths,
    starts,
    work,
    out,
    scale,
    soft_cap,
    value_scale,
    query_token_stride,
    query_head_stride,
    table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # A tile is TOKENS query tokens times the heads that share one key head: keys and values are read once for
    # the whole group. Tiles come longest first, so that the programs that finish last are short.
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    row = tl.load(work + 2 * tl.program_id(1))
    first = tl.load(work + 2 * tl.program_id(1) + 1)
    head = tl.program_id(0)
    length = tl.load(lengths + row)
    begin = tl.load(starts + row)
    queries = tl.load(starts + row + 1) - begin
    context = length - queries

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, DIM)
    token = first + m // GROUP
    inside = ((m < TOKENS * GROUP) & (token < queries))[:, None] & (d < HEAD_DIM)[None, :]
    at = (begin + token).to(tl.int64)[:, None]
    q_head = (head * GROUP + m % GROUP)[:, None]
    q = tl.load(query + at * query_token_stride + q_head * query_head_stride + d[None, :], mask=inside, other=0.0)
    position = context + token
    high = tl.full([BLOCK_M], -1e30, tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    table = tables + row.to(tl.int64) * table_stride

    lo = 0
    if WINDOW > 0:
        lo = tl.maximum(context + first - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    hi = tl.minimum(length, context + first + TOKENS)
    full = lo
    if WINDOW == 0:
        # Keys that even the tile's first token sees need no mask; only the tiles on the diagonal do.
        full = (context + first + 1) // BLOCK_N * BLOCK_N
        high, norm, acc = _attend(
            q, high, norm, acc, cache, table, head, length, position, lo, full, scale, soft_cap, KV_HEADS, HEAD_DIM,
            BLOCK_SIZE, WINDOW, SOFT_CAP, BLOCK_N, DIM, PRECISION, False,
        )  # fmt: skip
    high, norm, acc = _attend(
        q, high, norm, acc, cache, table, head, length, position, full, hi, scale, soft_cap, KV_HEADS, HEAD_DIM,
        BLOCK_SIZE, WINDOW, SOFT_CAP, BLOCK_N, DIM, PRECISION, True,
    )  # fmt: skip
    acc = acc * (value_scale / tl.maximum(norm, 1e-30))[:, None]
    tl.store(out + (at * (KV_HEADS * GROUP) + q_head) * HEAD_DIM + d[None, :], acc, mask=inside)
