"""Writes a step's keys and values into the paged cache, both in one launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["tokens", "decodes"])
def kv_write_kernel(
    key,
    value,
    cache,
    slots,
    tokens,
    decodes,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    key_scale,
    value_scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    CLEAN: tl.constexpr,
    SCALED: tl.constexpr,
    PDL: tl.constexpr,
):
    # One program a token: it moves KV_HEADS * HEAD_DIM numbers twice, a few vectors for each thread.
    token = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slots + token)
    if slot < 0:  # a padding token of a captured batch
        return
    head = tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, DIM)[None, :]
    inside = (head < KV_HEADS) & (dim < HEAD_DIM)
    k = tl.load(key + token * key_token_stride + head * key_head_stride + dim, mask=inside)
    v = tl.load(value + token * value_token_stride + head * value_head_stride + dim, mask=inside)
    if SCALED:  # an 8-bit cache: divided by the layer's scales, and cut at the largest number of e4m3
        k = tl.minimum(tl.maximum(k.to(tl.float32) / key_scale, -448.0), 448.0)
        v = tl.minimum(tl.maximum(v.to(tl.float32) / value_scale, -448.0), 448.0)
    page = (slot // BLOCK_SIZE * KV_HEADS + head) * 2
    at = cache + (page * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + dim
    tl.store(at, k.to(cache.dtype.element_ty), mask=inside)
    at += BLOCK_SIZE * HEAD_DIM
    tl.store(at, v.to(cache.dtype.element_ty), mask=inside)
    if CLEAN:  # noqa: SIM102 (known when compiled; the next is not)
        # Whole-page readers multiply the unused end of a row's last block by 0, and 0 * NaN is NaN: whatever an
        # earlier owner left there must go. A row ends where the next token's slot does not follow.
        if token >= decodes:
            follower = tl.load(slots + token + 1, mask=token + 1 < tokens, other=-1)
            if follower != slot + 1:
                for _ in range(slot % BLOCK_SIZE + 1, BLOCK_SIZE):
                    at += HEAD_DIM
                    tl.store(at, tl.zeros([HEADS, DIM], cache.dtype.element_ty), mask=inside)
