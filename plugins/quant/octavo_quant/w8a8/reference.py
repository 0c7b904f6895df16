"""Quantising activations to INT8 in plain torch: what the kernels must answer."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def quantise_rows(x: Tensor, symmetric: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` [tokens, in] to int8, float32 scales and float32 zero points [tokens]: ``x`` is about
    ``(codes - zero) * scale``, each token by its own."""
    wide = x.float()
    if symmetric:
        scale = wide.abs().amax(1).clamp_(min=_TINY) / 127
        zero = torch.zeros_like(scale)
    else:
        low, high = wide.amin(1).clamp_(max=0), wide.amax(1).clamp_(min=0)
        scale = (high - low).clamp_(min=_TINY) / 255
        zero = -128 - torch.floor(low / scale + 0.5)
    return _codes(wide, scale, zero), scale, zero


def quantise_fixed(x: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one scale and zero point (float32 [1]) for all tokens."""
    scale, zero = scale.expand(x.shape[0]), zero.expand(x.shape[0])
    return _codes(x.float(), scale, zero), scale.contiguous(), zero.contiguous()


def _codes(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    rounded = torch.floor(x / scale.unsqueeze(1) + 0.5) + zero.unsqueeze(1)
    return rounded.clamp_(-128, 127).to(torch.int8)
