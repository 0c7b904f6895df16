"""Quantising activations to FP8 in plain torch: what the kernels must answer."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_quant.fp8.format import E4M3, LARGEST

_TINY = 1e-12


def quantise_rows(x: Tensor, fixed: Tensor | None = None, upper: float | None = None) -> tuple[Tensor, Tensor]:
    """``x`` [tokens, in] to e4m3 and float32 scales [tokens, 1], ``x`` being about their product.

    Each token has its own scale, from its largest magnitude (taken to be at most ``upper``), or all have
    ``fixed`` (one float32 number).
    """
    wide = x.float()
    if fixed is None:
        largest = wide.abs().amax(1, keepdim=True).clamp_(min=_TINY)
        scale = (largest if upper is None else largest.clamp_(max=upper)) / LARGEST
    else:
        scale = fixed.reshape(1, 1).expand(x.shape[0], 1).contiguous()
    return (wide / scale).clamp_(-LARGEST, LARGEST).to(E4M3), scale


def quantise_groups(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The same with a scale for each ``group`` inputs of a token: float32 [tokens, groups]."""
    tokens, size = x.shape
    groups = -(-size // group)
    wide = torch.nn.functional.pad(x.float(), (0, groups * group - size)).view(tokens, groups, group)
    scale = wide.abs().amax(2).clamp_(min=_TINY) / LARGEST
    codes = (wide / scale.unsqueeze(2)).clamp_(-LARGEST, LARGEST).to(E4M3)
    return codes.view(tokens, groups * group)[:, :size].contiguous(), scale


def quantise_weight(weight: Tensor, parts: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """A weight [out, in] to e4m3 and float32 scales [out]: one for all outputs of a part, else one an output."""
    largest = weight.abs().amax(1).float().clamp_(min=_TINY)
    if parts is not None:
        pieces = torch.split(largest, list(parts))
        largest = torch.cat([piece.max().expand(len(piece)) for piece in pieces])
    scale = largest / LARGEST
    codes = torch.empty(weight.shape, dtype=E4M3, device=weight.device)
    for begin in range(0, len(weight), 4096):  # pieces: the float32 copy of a whole layer would be as large again
        rows = slice(begin, begin + 4096)
        wide = weight[rows].float() / scale[rows].unsqueeze(1)
        codes[rows] = wide.clamp_(-LARGEST, LARGEST).to(E4M3)
    return codes, scale
