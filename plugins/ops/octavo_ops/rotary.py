"""Rotary position embedding, in place: a token's heads in one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rope_kernel(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    token_stride,
    head_stride,
    num_heads,
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    of_pair = pair < half
    # The table holds both halves; the second half of the sines is the one with a plain sign.
    cos = tl.load(cos_ptr + token * 2 * half + pair, mask=of_pair, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * 2 * half + half + pair, mask=of_pair, other=0.0)[None, :]
    at = heads_ptr + token * token_stride + head[:, None] * head_stride + pair[None, :]
    inside = (head[:, None] < num_heads) & of_pair[None, :]
    stored = tl.load(at, mask=inside, other=0.0)
    first = stored.to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(stored.dtype), mask=inside)
    tl.store(at + half, (second * cos + first * sin).to(stored.dtype), mask=inside)


def rope(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See :func:`octavo.ops.reference.rope`; the last axis of ``heads`` is contiguous. Works in place."""
    tokens, num_heads, _ = heads.shape
    if tokens:
        half = cos.shape[-1] // 2
        block = 8
        _rope_kernel[(tokens, triton.cdiv(num_heads, block))](
            heads,
            cos,
            sin,
            heads.stride(0),
            heads.stride(1),
            num_heads,
            half,
            HEADS=block,
            HALF=triton.next_power_of_2(half),
            num_warps=4,
        )
    return heads
