"""Writes a step's keys and values into the paged cache, both in one launch."""

# mypy: disable-error-code="misc, no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def kv_write_kernel(
    key,
    value,
    cache,
    slots,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    # One program a token: it moves KV_HEADS * HEAD_DIM numbers twice, a few vectors for each thread.
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:  # a padding token of a captured batch
        return
    head = tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, DIM)[None, :]
    inside = (head < KV_HEADS) & (dim < HEAD_DIM)
    k = tl.load(key + token * key_token_stride + head * key_head_stride + dim, mask=inside)
    v = tl.load(value + token * value_token_stride + head * value_head_stride + dim, mask=inside)
    page = (slot // BLOCK_SIZE * KV_HEADS + head) * 2
    target = cache + (page * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + dim
    tl.store(target, k.to(cache.dtype.element_ty), mask=inside)
    tl.store(target + BLOCK_SIZE * HEAD_DIM, v.to(cache.dtype.element_ty), mask=inside)


def kv_write(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """Copy ``key`` and ``value`` [tokens, kv_heads, head_dim] to ``slots`` [tokens]; negative slots are skipped."""
    _, kv_heads, _, block_size, head_dim = cache.shape
    kv_write_kernel[(key.shape[0],)](
        key,
        value,
        cache,
        slots,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        HEADS=triton.next_power_of_2(kv_heads),
        DIM=triton.next_power_of_2(head_dim),
        num_warps=4,
    )
