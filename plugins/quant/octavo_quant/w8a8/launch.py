"""Launches the INT8 quantising kernel. The product is :func:`octavo_quant.fp8.launch.matmul`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from octavo_quant.scratch import early
from octavo_quant.w8a8.kernels import quantise_int8_kernel

_BLOCK = 8192


def quantise(x: Tensor, fixed: tuple[Tensor, Tensor] | None, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See :mod:`octavo_quant.w8a8.reference`; ``fixed`` holds one scale and one zero point. One launch."""
    tokens, size = x.shape
    codes = torch.empty((tokens, size), dtype=torch.int8, device=x.device)
    scales, zeros = torch.empty((2, tokens), dtype=torch.float32, device=x.device)
    if tokens:
        block = min(triton.next_power_of_2(size), _BLOCK)
        quantise_int8_kernel[(tokens,)](
            x,
            codes,
            scales,
            zeros,
            *(fixed or (scales, zeros)),
            size,
            x.stride(0),
            STATIC=fixed is not None,
            SYMMETRIC=symmetric,
            BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
            **early(x.device),
        )
    return codes, scales, zeros
