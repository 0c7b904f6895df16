"""Rotary position embedding, in place: a token's heads in one program."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.ahead import launch
from octavo.early import early_options
from octavo.ops import reference


@triton.jit
def _rope_kernel(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    token_stride,
    head_stride,
    num_heads,
    half,
    query_weight_ptr,
    key_weight_ptr,
    queries,
    eps,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PDL: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    of_pair = pair < half
    # Read before the wait: long written. The second half of the sines is the one with a plain sign.
    cos = tl.load(cos_ptr + token * 2 * half + pair, mask=of_pair, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * 2 * half + half + pair, mask=of_pair, other=0.0)[None, :]
    at = heads_ptr + token * token_stride + head[:, None] * head_stride + pair[None, :]
    inside = (head[:, None] < num_heads) & of_pair[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    stored = tl.load(at, mask=inside, other=0.0)
    first = stored.to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        scale = tl.rsqrt(squares / (2 * half) + eps)[:, None]
        is_query = head[:, None] < queries
        at_query = query_weight_ptr + pair[None, :]
        at_key = key_weight_ptr + pair[None, :]
        mine, other = inside & is_query, inside & (head[:, None] >= queries)
        low = tl.load(at_query, mask=mine, other=0.0) + tl.load(at_key, mask=other, other=0.0)
        high = tl.load(at_query + half, mask=mine, other=0.0) + tl.load(at_key + half, mask=other, other=0.0)
        # Rounded where the reference rounds: after the scale, and after the weight.
        first = (
            ((first * scale).to(stored.dtype).to(tl.float32) * low.to(tl.float32)).to(stored.dtype).to(tl.float32)
        )
        second = ((second * scale).to(stored.dtype).to(tl.float32) * high.to(tl.float32)).to(stored.dtype)
        second = second.to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(stored.dtype), mask=inside)
    tl.store(at + half, (second * cos + first * sin).to(stored.dtype), mask=inside)


def rope(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, early: bool = False) -> torch.Tensor:
    """See :func:`octavo.ops.reference.rope`; the last axis of ``heads`` is contiguous. Works in place."""
    return _launch(heads, cos, sin, None, None, 0, 0.0, early)


def qk_norm_rope(
    heads: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    queries: int,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    early: bool = False,
) -> torch.Tensor:
    """See :func:`octavo.ops.reference.qk_norm_rope`; whole heads are rotated. Works in place."""
    if cos.shape[-1] != heads.shape[-1]:
        return reference.qk_norm_rope(heads, query_weight, key_weight, queries, eps, cos, sin)
    return _launch(heads, cos, sin, query_weight, key_weight, queries, eps, early)


def _launch(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    query_weight: torch.Tensor | None,
    key_weight: torch.Tensor | None,
    queries: int,
    eps: float,
    early: bool,
) -> torch.Tensor:
    tokens, num_heads, _ = heads.shape
    if tokens:
        half = cos.shape[-1] // 2
        block = 8
        launch(
            _rope_kernel,
            (tokens, triton.cdiv(num_heads, block)),
            heads,
            cos,
            sin,
            heads.stride(0),
            heads.stride(1),
            num_heads,
            half,
            heads if query_weight is None else query_weight,
            heads if key_weight is None else key_weight,
            queries,
            eps,
            NORM=query_weight is not None,
            HEADS=block,
            HALF=triton.next_power_of_2(half),
            num_warps=4,
            **early_options(early),
        )
    return heads
