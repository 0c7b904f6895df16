"""The one in-memory form of four-bit codebook weights, whatever checkpoint they came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNIT = 128
"""Inputs that are packed together: byte ``j`` of 64 holds code ``j`` in its low half and code ``64 + j`` in its
high one, so that both halves of a tile are neighbouring inputs."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of FP4 (OCP Microscaling Formats 1.0), by their code."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight [out, in]: ``table[codes] * scales * rows``.

    ``codes`` uint8 [out, in]; ``table`` float32 [16]; ``scales`` [out, in / group], float32, e4m3, or uint8 for
    powers of two (2^(s - 127)); ``rows`` float32 [out] or ``None``.
    """

    codes: Tensor
    table: Tensor
    scales: Tensor
    group: int
    rows: Tensor | None = None

    def dequantise(self) -> Tensor:
        """float32 [out, in]."""
        rows, size = self.codes.shape
        values = self.table[self.codes.long()].view(rows, -1, self.group)
        values = (values * wide_scales(self.scales).unsqueeze(2)).view(rows, size)
        return values if self.rows is None else values * self.rows.unsqueeze(1)

    def packed(self) -> Codes:
        """The same with ``codes`` as the kernels read them: uint8 [out, in / 2]."""
        rows, size = self.codes.shape
        units = self.codes.view(rows, size // UNIT, 2, UNIT // 2)
        return replace(self, codes=(units[:, :, 0] | units[:, :, 1] << 4).reshape(rows, -1).contiguous())


def wide_scales(scales: Tensor) -> Tensor:
    """Scales of any kind in float32."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.float() - 127)
    return scales.float()


def unpack_nibbles(packed: Tensor, high_first: bool = False) -> Tensor:
    """uint8 [..., n] to codes uint8 [..., 2 n]."""
    halves = (packed >> 4, packed & 15) if high_first else (packed & 15, packed >> 4)
    return torch.stack(halves, -1).flatten(-2)
