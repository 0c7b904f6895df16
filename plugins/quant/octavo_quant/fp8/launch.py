"""Launches the FP8 kernels: tiles for each number of tokens, grids, and memory that launches share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from octavo_quant.fp8.format import E4M3
from octavo_quant.fp8.kernels import quantise_groups_kernel, quantise_rows_kernel, scaled_product_kernel
from octavo_quant.scratch import counters, early, processors, split

_ONCE = 16384  # inputs that one program keeps in registers


@dataclass(frozen=True, slots=True)
class Tile:
    """``tokens`` by ``outputs`` by ``inputs``."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def tile_for(tokens: int, blocked: bool, wide: bool) -> Tile:
    """Small batches are bound by reading weights: tiles small enough for two programs a processor, with several
    loads on their way. A scaled block is 128 inputs, so tiles of blocked weights are as wide."""
    inputs = 128 if blocked or wide else 256
    if tokens <= 16:
        return Tile(16, 64, inputs, warps=4, stages=5 if inputs == 128 else 4)
    if tokens <= 32:
        return Tile(32, 64, inputs, warps=4, stages=4)
    if tokens <= 64:
        return Tile(64, 64, 128, warps=4, stages=4)
    return Tile(128, 128, 64 if wide and not blocked else 128, warps=8, stages=3)


def quantise_rows(x: Tensor, fixed: Tensor | None = None, upper: float | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`octavo_quant.fp8.reference.quantise_rows`. One launch."""
    tokens, size = x.shape
    codes = torch.empty((tokens, size), dtype=E4M3, device=x.device)
    scales = torch.empty((tokens, 1), dtype=torch.float32, device=x.device)
    if tokens:
        block = min(triton.next_power_of_2(size), _ONCE)
        quantise_rows_kernel[(tokens,)](
            x,
            codes,
            scales,
            scales if fixed is None else fixed,
            size,
            x.stride(0),
            upper or 0.0,
            STATIC=fixed is not None,
            BOUNDED=upper is not None,
            ONCE=size <= block,
            BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
            **early(x.device),
        )
    return codes, scales


def quantise_groups(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """See :func:`octavo_quant.fp8.reference.quantise_groups`. ``group`` must be a power of two."""
    tokens, size = x.shape
    groups = -(-size // group)
    codes = torch.empty((tokens, size), dtype=E4M3, device=x.device)
    scales = torch.empty((tokens, groups), dtype=torch.float32, device=x.device)
    if tokens:
        block = min(triton.next_power_of_2(groups), 32)
        grid = (tokens, triton.cdiv(groups, block))
        quantise_groups_kernel[grid](
            x, codes, scales, size, x.stride(0), groups, GROUP=group, BLOCK=block, num_warps=4, **early(x.device)
        )
    return codes, scales


def matmul(
    x: Tensor,
    x_scales: Tensor | None,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
    x_zeros: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """``x`` [tokens, in] times ``weight`` [out, in], transposed, to [tokens, out] in ``dtype``.

    ``weight`` is e4m3, and ``x`` e4m3 with float32 scales or 16-bit without; or both are int8. Scales of both are
    one a row, or (of e4m3) [rows, groups] with a group for each 128 inputs. ``x_zeros`` float32 [tokens] are
    subtracted from int8 ``x``; ``sums`` float32 [out] are then those of the weights.
    """
    tokens, size = x.shape
    outputs = weight.shape[0]
    blocked = weight_scales.dim() == 2
    out = torch.empty((tokens, outputs), dtype=dtype, device=x.device)
    if not tokens:
        return out
    tile = tile or tile_for(tokens, blocked, x_scales is None)
    grid = (triton.cdiv(outputs, tile.outputs), triton.cdiv(tokens, tile.tokens))
    pairs = grid[0] * grid[1]
    splits, share = split(pairs, triton.cdiv(size, tile.inputs), processors(x.device))
    numbers = splits * pairs * tile.outputs * tile.tokens if splits > 1 else 1
    partial = torch.empty(numbers, dtype=torch.float32, device=x.device)
    scaled_product_kernel[(*grid, splits)](
        weight,
        weight_scales,
        x,
        x_scales if x_scales is not None else weight_scales,
        x_zeros if x_zeros is not None else weight_scales,
        sums if sums is not None else weight_scales,
        bias if bias is not None else weight_scales,
        out,
        partial,
        counters(x.device, pairs),
        tokens,
        outputs,
        size,
        x.stride(0),
        weight_scales.shape[1] if blocked else 1,
        splits,
        share,
        BLOCKED=blocked,
        WIDE=x_scales is None,
        WHOLE=weight.dtype == torch.int8,
        SHIFTED=x_zeros is not None,
        HAS_BIAS=bias is not None,
        EVEN=size % tile.inputs == 0,
        BLOCK_T=tile.tokens,
        BLOCK_N=tile.outputs,
        BLOCK_K=tile.inputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **early(x.device),
    )
    return out
