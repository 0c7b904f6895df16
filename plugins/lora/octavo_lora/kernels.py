"""Two kernels for the adapters of one linear layer: shrink the inputs, expand into the layer's output.

Tokens come grouped by slot: ``order`` lists those that have an adapter so that a slot's lie together, and
``tiles`` cuts the list into pieces of at most ``BLOCK_M`` tokens of one slot, so that a product of tensor cores
belongs to one adapter. Tiles that a graph has room for and the step does not need say slot 0, and end at once.

With ``PDL`` a kernel may be started before the one ahead has ended (programmatic dependent launch, Hopper). Every
program waits for that end first, those with nothing to do as well, or the kernel behind could come too early.

``facts`` holds each part's rank in each slot: what lies behind it is neither read nor, in whole blocks, multiplied.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["tokens"])
def shrink_kernel(
    x_ptr,
    down_ptr,
    facts_ptr,
    low_ptr,
    order_ptr,
    tiles_ptr,
    tokens,
    inputs,
    span,
    x_stride,
    lows,
    facts_stride,
    MAX_RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """``low[split, token, part * MAX_RANK + rank]``: the sum over one stretch of ``span`` inputs.

    A program takes ``BLOCK_R`` of all parts' ranks, so that parts of small rank share one reading of ``x``. With
    ``EVEN`` the inputs are a multiple of ``BLOCK_K``.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    tile = tiles_ptr + tl.program_id(0) * 3
    slot = tl.load(tile)
    if slot == 0:
        return
    split = tl.program_id(1) % SPLITS
    at = tl.program_id(1) // SPLITS * BLOCK_R + tl.arange(0, BLOCK_R)
    rank = tl.load(facts_ptr + slot * facts_stride + at // MAX_RANK, mask=at < lows, other=0)
    used = at % MAX_RANK < rank
    if tl.max(used.to(tl.int32), 0) == 0:
        return
    rows = tl.load(tile + 1) + tl.arange(0, BLOCK_M)
    inside = rows < tl.load(tile + 2)
    token = tl.load(order_ptr + rows, mask=inside, other=0)
    columns = tl.arange(0, BLOCK_K)
    x = x_ptr + token[:, None] * x_stride + columns[None, :]
    down = down_ptr + (slot * lows + at)[None, :] * inputs + columns[:, None]
    stop = tl.minimum((split + 1) * span, inputs)
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for begin in range(split * span, stop, BLOCK_K):
        if EVEN:
            some = tl.load(x + begin, mask=inside[:, None], other=0.0)
            weight = tl.load(down + begin, mask=used[None, :], other=0.0)
        else:
            valid = begin + columns < stop
            some = tl.load(x + begin, mask=inside[:, None] & valid[None, :], other=0.0)
            weight = tl.load(down + begin, mask=valid[:, None] & used[None, :], other=0.0)
        total = tl.dot(some, weight, total, input_precision="ieee")
    target = low_ptr + ((split * tokens + token) * lows)[:, None] + at[None, :]
    tl.store(target, total, mask=inside[:, None] & used[None, :])


@triton.jit(do_not_specialize=["tokens"])
def expand_kernel(
    low_ptr,
    up_ptr,
    bias_ptr,
    gain_ptr,
    facts_ptr,
    out_ptr,
    order_ptr,
    tiles_ptr,
    strips_ptr,
    tokens,
    outputs,
    out_stride,
    lows,
    facts_stride,
    MAX_RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNED: tl.constexpr,
    PDL: tl.constexpr,
):
    """``out = out * gain + low up + bias``, for a strip of columns that belongs to one part.

    A program goes through its strip block by block, so that it waits only once for what says where everything is.
    With ``ALIGNED`` all parts begin and end at multiples of 16.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    tile = tiles_ptr + tl.program_id(0) * 3
    slot = tl.load(tile)
    if slot == 0:
        return
    strip = strips_ptr + tl.program_id(1) * 3
    part, start, end = tl.load(strip), tl.load(strip + 1), tl.load(strip + 2)
    if ALIGNED:
        start, end = tl.multiple_of(start, 16), tl.multiple_of(end, 16)
    rank = tl.load(facts_ptr + slot * facts_stride + part)
    bits = tl.load(facts_ptr + slot * facts_stride + facts_stride - 1)
    rows = tl.load(tile + 1) + tl.arange(0, BLOCK_M)
    inside = rows < tl.load(tile + 2)
    token = tl.load(order_ptr + rows, mask=inside, other=0)
    if rank == 0:
        return
    ranks = tl.arange(0, BLOCK_R)
    source = low_ptr + (token * lows + part * MAX_RANK)[:, None] + ranks[None, :]
    low = _sum_low(source, inside[:, None] & (ranks < rank)[None, :], tokens * lows, SPLITS).to(
        up_ptr.dtype.element_ty
    )
    up = up_ptr + slot * MAX_RANK * outputs + ranks[:, None] * outputs
    for column in range(start, end, BLOCK_N):
        columns = column + tl.arange(0, BLOCK_N)
        valid = columns < end
        target = out_ptr + token[:, None] * out_stride + columns[None, :]
        mask = inside[:, None] & valid[None, :]
        before = tl.load(target, mask=mask, other=0.0)
        weight = tl.load(up + columns[None, :], mask=valid[None, :] & (ranks < rank)[:, None], other=0.0)
        change = tl.dot(low, weight, input_precision="ieee")
        if MAX_RANK > BLOCK_R:
            for begin in range(BLOCK_R, rank, BLOCK_R):
                some = begin + ranks < rank
                more = _sum_low(source + begin, inside[:, None] & some[None, :], tokens * lows, SPLITS)
                weight = tl.load(
                    up + begin * outputs + columns[None, :], mask=valid[None, :] & some[:, None], other=0.0
                )
                change = tl.dot(more.to(weight.dtype), weight, change, input_precision="ieee")
        total = before.to(tl.float32)
        if bits & 2:
            total *= tl.load(gain_ptr + slot * outputs + columns, mask=valid, other=1.0)[None, :]
        if bits & 1:
            change += tl.load(bias_ptr + slot * outputs + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
        tl.store(target, (total + change).to(before.dtype), mask=mask)


@triton.jit
def _sum_low(source, mask, stride, SPLITS: tl.constexpr):
    """What the programs of the shrink kernel have summed up, each a stretch of the inputs."""
    low = tl.load(source, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        low += tl.load(source + split * stride, mask=mask, other=0.0)
    return low
