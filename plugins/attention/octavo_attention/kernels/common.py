"""Small pieces that decode and prefill share. Logits are in base 2: ``scale`` already holds log2(e)."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def page_offsets(table, n, length, head, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where the keys at positions ``n`` of one row begin in the cache; the values are one page further on."""
    block = tl.load(table + n // BLOCK_SIZE, mask=n < length, other=0).to(tl.int64)
    return ((block * KV_HEADS + head) * (2 * BLOCK_SIZE) + n % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def capped(s, scale, soft_cap):
    """Base-2 logits soft_cap * tanh(s / soft_cap), from raw products."""
    # tanh(x) = 1 - 2 / (exp(2x) + 1) holds at both ends: exp overflows to infinity or falls to 0.
    bent = 1.0 - 2.0 / (tl.exp2(s * (scale / soft_cap * 2.0)) + 1.0)
    return bent * (soft_cap * 1.4426950408889634)


@triton.jit
def softmax_step(s, high, norm, scale):
    """One tile of a running softmax over ``s * scale``; ``high`` stays finite where all of a row is masked."""
    top = tl.maximum(high, tl.max(s, 1) * scale)
    shrink = tl.exp2(high - top)
    p = tl.exp2(s * scale - top[:, None])
    return p, top, norm * shrink + tl.sum(p, 1), shrink
