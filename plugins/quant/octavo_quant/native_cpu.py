"""Grouped integer weights on a CPU through this plugin's C++, where that was compiled.

Weights stay in 4 or 8 bits, and each token's activations become 16-bit integers: quicker than float32 at every
batch size, and nearly as exact as the dequantised weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_quant.native_library import LIBRARY, load

_PANEL = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeWeights:
    """Panels of 16 outputs: see ``native/grouped.cpp``.

    ``packed`` uint8; ``scales`` and ``offsets`` float32 [panels, groups, 16]: a weight is scale * code + offset,
    with 128 subtracted from codes of 8 bits. ``permutation`` int64 [in]: column ``j`` belongs to input
    ``permutation[j]``.
    """

    packed: Tensor
    scales: Tensor
    offsets: Tensor
    bits: int
    group_size: int
    outputs: int
    inputs: int
    permutation: Tensor | None


def native_takes(width: int, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether such weights can be packed here: the library is there, and groups hold whole pairs of inputs."""
    if device.type != "cpu" or dtype != torch.float32 or LIBRARY.missing() is not None:
        return False
    return group > 0 and group % 2 == 0 and width % group == 0


def pack_native(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    *,
    bits: int,
    group_size: int,
    permutation: Tensor | None = None,
) -> NativeWeights:
    """``codes`` uint8 [out, in], ``scales`` [out, groups], ``zeros`` [out, groups] or ``None`` for the middle code.

    Up to 4 bits take half a byte each, more a whole one.
    """
    outputs, inputs = codes.shape
    wide = bits > 4
    panels = -(-outputs // _PANEL)
    packed = torch.empty(panels * _PANEL * inputs // (1 if wide else 2), dtype=torch.uint8)
    codes = codes.contiguous()
    load().octavo_grouped_pack(codes.data_ptr(), 8 if wide else 4, outputs, inputs, packed.data_ptr())
    zero = torch.full_like(scales, 2 ** (bits - 1), dtype=torch.float32) if zeros is None else zeros.float()
    scale = scales.float()
    return NativeWeights(
        packed=packed,
        scales=_panels(scale, panels),
        offsets=_panels((zero - (128 if wide else 0)) * -scale, panels),
        bits=8 if wide else 4,
        group_size=group_size,
        outputs=outputs,
        inputs=inputs,
        permutation=None if permutation is None else permutation.long(),
    )


def native_linear(x: Tensor, weights: NativeWeights, bias: Tensor | None) -> Tensor:
    """``x`` float32 [tokens, in] to [tokens, out]."""
    x = x.contiguous() if weights.permutation is None else x.index_select(1, weights.permutation)
    tokens = x.shape[0]
    out = torch.empty(tokens, weights.outputs)
    if tokens:
        load().octavo_grouped(
            x.data_ptr(),
            tokens,
            weights.packed.data_ptr(),
            weights.bits,
            weights.scales.data_ptr(),
            weights.offsets.data_ptr(),
            weights.outputs,
            weights.inputs,
            weights.group_size,
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def unpack_native(weights: NativeWeights) -> Tensor:
    """The weight [out, in] in float32, its columns in the order of the layer's inputs."""
    panels = weights.scales.shape[0]
    if weights.bits == 8:
        pairs = weights.packed.view(torch.int8).view(panels, -1, _PANEL, 2)
    else:
        both = weights.packed.view(panels, -1, _PANEL)
        pairs = torch.stack((both & 15, both >> 4), dim=3)
    codes = pairs.permute(0, 2, 1, 3).reshape(panels * _PANEL, -1, weights.group_size).float()
    scales, offsets = (
        part.transpose(1, 2).reshape(panels * _PANEL, -1, 1) for part in (weights.scales, weights.offsets)
    )
    values = (codes * scales + offsets).view(panels * _PANEL, -1)[: weights.outputs]
    if weights.permutation is None:
        return values
    return torch.empty_like(values).index_copy_(1, weights.permutation, values)


def _panels(values: Tensor, panels: int) -> Tensor:
    """[out, groups] to [panels, groups, 16]; outputs that are not there are zero."""
    padded = torch.zeros(panels * _PANEL, values.shape[1])
    padded[: len(values)] = values
    return padded.view(panels, _PANEL, -1).transpose(1, 2).contiguous()
