"""Small pieces that decode and prefill share."""

# mypy: disable-error-code="misc, no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def page_offsets(table, n, length, head, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where the keys at positions ``n`` of one row begin in the cache; values are one page further on."""
    block = tl.load(table + n // BLOCK_SIZE, mask=n < length, other=0).to(tl.int64)
    return ((block * KV_HEADS + head) * (2 * BLOCK_SIZE) + n % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def capped(s, scale, soft_cap, SOFT_CAP: tl.constexpr):
    """Raw products to base-2 logits: scaled, soft-capped, times log2(e)."""
    if SOFT_CAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1) holds at both ends: exp overflows to infinity or falls to 0.
        bent = 1.0 - 2.0 / (tl.exp2(s * (scale / soft_cap * 2.8853900817779268)) + 1.0)
        return bent * (soft_cap * 1.4426950408889634)
    return s * (scale * 1.4426950408889634)


@triton.jit
def softmax_step(s, high, norm):
    """One step of the running softmax over a tile of base-2 logits. ``high`` is finite, also when all are -inf."""
    top = tl.maximum(high, tl.max(s, 1))
    shrink = tl.exp2(high - top)
    p = tl.exp2(s - top[:, None])
    return p, top, norm * shrink + tl.sum(p, 1), shrink
