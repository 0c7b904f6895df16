"""Two kernels for the adapters of one linear layer: shrink the inputs, expand into the layer's output.

Tokens are grouped by slot beforehand: ``order`` lists them so that those of a slot lie together, ``starts[s]`` is
where slot ``s`` begins. A program takes one block of one slot's tokens; programs beyond the slot's last token end
at once, so that the grid depends on the shapes alone and can be captured in a graph. Sums run in an order that
depends on the layer's shape only: a row's result does not depend on its neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _shrink_kernel(
    x_ptr,
    down_ptr,
    low_ptr,
    order_ptr,
    starts_ptr,
    tokens,
    inputs,
    span,
    x_stride,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    slot = tl.program_id(1) + 1
    part = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    last = tl.load(starts_ptr + slot + 1)
    first = tl.load(starts_ptr + slot) + tl.program_id(0) * BLOCK_M
    if first >= last:
        return
    rows = first + tl.arange(0, BLOCK_M)
    inside = rows < last
    token = tl.load(order_ptr + rows, mask=inside, other=0)
    ranks = tl.arange(0, BLOCK_R)
    down = down_ptr + ((slot * PARTS + part).to(tl.int64) * RANK + ranks[None, :]) * inputs
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    stop = tl.minimum((split + 1) * span, inputs)
    for begin in range(split * span, stop, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        valid = columns < stop
        x = tl.load(
            x_ptr + token[:, None] * x_stride + columns[None, :], mask=inside[:, None] & valid[None, :], other=0.0
        )
        weight = tl.load(down + columns[:, None], mask=valid[:, None] & (ranks[None, :] < RANK), other=0.0)
        total += tl.dot(x, weight, input_precision="ieee")
    target = low_ptr + (((split * tokens + token) * PARTS + part) * RANK)[:, None] + ranks[None, :]
    tl.store(target, total, mask=inside[:, None] & (ranks[None, :] < RANK))


@triton.jit
def _expand_kernel(
    low_ptr,
    up_ptr,
    bias_ptr,
    out_ptr,
    order_ptr,
    starts_ptr,
    blocks_ptr,
    tokens,
    outputs,
    out_stride,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    slot = tl.program_id(1) + 1
    last = tl.load(starts_ptr + slot + 1)
    first = tl.load(starts_ptr + slot) + tl.program_id(0) * BLOCK_M
    if first >= last:
        return
    block = blocks_ptr + tl.program_id(2) * 3  # a block of columns never crosses from one part into the next
    part = tl.load(block)
    columns = tl.load(block + 1) + tl.arange(0, BLOCK_N)
    valid = columns < tl.load(block + 2)
    rows = first + tl.arange(0, BLOCK_M)
    inside = rows < last
    token = tl.load(order_ptr + rows, mask=inside, other=0)
    ranks = tl.arange(0, BLOCK_R)
    low = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    known = inside[:, None] & (ranks[None, :] < RANK)
    for split in tl.static_range(SPLITS):
        source = low_ptr + (((split * tokens + token) * PARTS + part) * RANK)[:, None] + ranks[None, :]
        low += tl.load(source, mask=known, other=0.0)
    at = slot.to(tl.int64) * outputs + columns
    weight = tl.load(
        up_ptr + at[None, :] * RANK + ranks[:, None], mask=valid[None, :] & (ranks[:, None] < RANK), other=0.0
    )
    change = tl.dot(low.to(weight.dtype), weight, input_precision="ieee")
    change += tl.load(bias_ptr + at, mask=valid, other=0.0).to(tl.float32)[None, :]
    target = out_ptr + token[:, None] * out_stride + columns[None, :]
    mask = inside[:, None] & valid[None, :]
    before = tl.load(target, mask=mask, other=0.0)
    tl.store(target, (before.to(tl.float32) + change).to(before.dtype), mask=mask)


BLOCK_N = 128


def add_adapters(
    x: torch.Tensor,
    out: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    bias: torch.Tensor,
    order: torch.Tensor,
    starts: torch.Tensor,
    blocks: torch.Tensor,
) -> None:
    """Add to ``out`` [tokens, outputs] what the adapters make of ``x`` [tokens, inputs]; rows contiguous.

    ``down``, ``up``, ``bias`` are those of :class:`octavo_lora.slots.SiteSlots`; ``order`` int64 [tokens] and
    ``starts`` int64 [slots + 2] as above; ``blocks`` int32 [blocks, 3]: part, first column and end of each block of
    columns.
    """
    tokens, inputs = x.shape
    slots, parts, rank = down.shape[0] - 1, down.shape[1], down.shape[2]
    splits = 4 if inputs >= 1024 else 1
    span = triton.cdiv(triton.cdiv(inputs, splits), 64) * 64
    low = torch.empty((splits, tokens, parts, rank), dtype=torch.float32, device=x.device)
    block_m = 16 if tokens <= 128 else 64
    block_r = max(16, triton.next_power_of_2(rank))
    groups = triton.cdiv(tokens, block_m)
    _shrink_kernel[(groups, slots, parts * splits)](
        x, down, low, order, starts, tokens, inputs, span, x.stride(0),
        PARTS=parts, RANK=rank, SPLITS=splits, BLOCK_M=block_m, BLOCK_R=block_r, BLOCK_K=64,
    )  # fmt: skip
    _expand_kernel[(groups, slots, blocks.shape[0])](
        low, up, bias, out, order, starts, blocks, tokens, out.shape[1], out.stride(0),
        PARTS=parts, RANK=rank, SPLITS=splits, BLOCK_M=block_m, BLOCK_R=block_r, BLOCK_N=BLOCK_N,
    )  # fmt: skip
