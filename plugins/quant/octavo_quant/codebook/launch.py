"""Launches the codebook kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from octavo_quant.codebook.kernels import codebook_decode_kernel, codebook_product_kernel
from octavo_quant.codebook.weights import UNIT, Codes
from octavo_quant.scratch import counters, early, processors, split

FEW = 32
"""Up to this many tokens the product reads codes; above, cuBLAS reads what they are decoded to."""
_KINDS = {torch.float32: 0, torch.float8_e4m3fn: 1, torch.uint8: 2}


def codebook_matmul(x: Tensor, weights: Codes, bias: Tensor | None) -> Tensor:
    """``x`` [tokens, in] to [tokens, out], by packed weights."""
    if x.shape[0] > FEW:
        return F.linear(x, decode(weights, x.dtype), bias)
    return product(x, weights, bias)


def decode(weights: Codes, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] in 16 bits."""
    outputs, half = weights.codes.shape
    out = torch.empty((outputs, 2 * half), dtype=dtype, device=weights.codes.device)
    codebook_decode_kernel[(2 * half // UNIT, triton.cdiv(outputs, 32))](
        weights.codes,
        weights.table,
        _bytes(weights.scales),
        weights.table if weights.rows is None else weights.rows,
        out,
        outputs,
        2 * half,
        weights.scales.shape[1],
        KIND=_KINDS[weights.scales.dtype],
        GROUP=weights.group,
        HAS_ROWS=weights.rows is not None,
        BLOCK_N=32,
        num_warps=4,
    )
    return out


def product(x: Tensor, weights: Codes, bias: Tensor | None) -> Tensor:
    """Few tokens."""
    tokens, size = x.shape
    outputs = weights.codes.shape[0]
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    block_t, block_n = (16, 64) if tokens <= 16 else (32, 64)
    grid = (triton.cdiv(outputs, block_n), triton.cdiv(tokens, block_t))
    pairs = grid[0] * grid[1]
    splits, share = split(pairs, size // UNIT, processors(x.device))
    partial = torch.empty(splits * pairs * block_n * block_t, dtype=torch.float32, device=x.device)
    codebook_product_kernel[(*grid, splits)](
        weights.codes,
        weights.table,
        _bytes(weights.scales),
        weights.table if weights.rows is None else weights.rows,
        x,
        weights.table if bias is None else bias,
        out,
        partial,
        counters(x.device, pairs),
        tokens,
        outputs,
        size,
        x.stride(0),
        weights.scales.shape[1],
        splits,
        share,
        KIND=_KINDS[weights.scales.dtype],
        GROUP=weights.group,
        HAS_ROWS=weights.rows is not None,
        HAS_BIAS=bias is not None,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=4,
        **early(x.device),
    )
    return out


def _bytes(scales: Tensor) -> Tensor:
    return scales if scales.dtype == torch.float32 else scales.view(torch.uint8)
