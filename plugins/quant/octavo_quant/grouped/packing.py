"""Integer codes packed into 32-bit words for the kernels.

The input channels are cut into *units* of ``16 * (32 / bits)``: 128 for 4-bit codes. A row of a unit is 16 words,
and field ``i`` of word ``w`` holds channel ``16 * i + w`` of the unit. So one shift and one mask of all words give
16 neighbouring channels, which is what one tensor-core step takes. Units come first, then rows: a tile of rows of
one unit is one contiguous piece of memory, whatever its height.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORDS = 16
"""Words of a row of a unit, and channels of one field."""

CONTAINERS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}
"""Bits of a code to bits of the field that holds it."""


def unit_size(bits: int) -> int:
    """Input channels of a unit for fields of ``bits``."""
    return WORDS * 32 // bits


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """``codes`` uint8 [out, in] to int32 [units, out, 16]; a last unit that is not full is filled with zeros."""
    rows, width = codes.shape
    unit = unit_size(bits)
    units = -(-width // unit)
    words = torch.zeros((units, rows, WORDS), dtype=torch.int32, device=codes.device)
    for field in range(32 // bits):
        for index in range(units):
            first = index * unit + field * WORDS
            piece = codes[:, first : first + WORDS]
            if piece.shape[1]:
                words[index, :, : piece.shape[1]] |= piece.to(torch.int32) << (field * bits)
    return words


def unpack_codes(words: Tensor, bits: int, width: int) -> Tensor:
    """The inverse: uint8 [out, width]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    fields = (words.unsqueeze(2) >> shifts[:, None]) & (2**bits - 1)  # [units, out, fields, 16]
    codes: Tensor = fields.to(torch.uint8).permute(1, 0, 2, 3).reshape(words.shape[1], -1)
    return codes[:, :width].contiguous()
