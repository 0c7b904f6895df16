"""GGUF's blocks to codes, scales and zero points. Layouts are ggml's: each block is a run of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Decoded = tuple[Tensor, Tensor, "Tensor | None"]
"""Codes uint8 [blocks, elements]; scales and zero points (``None``: the middle) float32 [blocks, groups]."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """``elements`` neighbouring weights of a row lie in ``nbytes``; ``group`` of them share a scale."""

    elements: int
    nbytes: int
    bits: int
    group: int
    decode: Callable[[Tensor], Decoded]


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of each block, as float32 [blocks, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """All low halves of each row, then all high ones."""
    return torch.cat([packed & 15, packed >> 4], 1)


def _with_minimum(codes: Tensor, scale: Tensor, minimum: Tensor) -> Decoded:
    """``code * scale + minimum`` as ``(code - zero) * scale``; where the scale is 0 all weights are the minimum."""
    flat = scale == 0
    group = codes.shape[1] // scale.shape[1]
    codes = codes.masked_fill(flat.repeat_interleave(group, 1), 0)
    zero = torch.where(flat, -torch.ones_like(scale), -minimum / torch.where(flat, 1.0, scale))
    return codes, torch.where(flat, minimum, scale), zero


def _q4_0(blocks: Tensor) -> Decoded:
    return _nibbles(blocks[:, 2:]), _half(blocks, 0), None


def _q4_1(blocks: Tensor) -> Decoded:
    return _with_minimum(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2))


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """Bit ``i`` of the 32 at byte ``at``, as 16 for code ``i``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    bits = (blocks[:, at : at + 4].unsqueeze(2) >> shifts) & 1
    return bits.flatten(1) << 4


def _q5_0(blocks: Tensor) -> Decoded:
    return _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2), _half(blocks, 0), None


def _q5_1(blocks: Tensor) -> Decoded:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _with_minimum(codes, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Decoded:
    return blocks[:, 2:] ^ 128, _half(blocks, 0), None  # int8 plus 128


def _scales_and_minimums(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and as many minimums out of 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    minimums = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)
    return scales.float(), minimums.float()


def _k_nibbles(packed: Tensor) -> Tensor:
    """128 bytes to 256 codes: 32 low halves, then the 32 high ones of the same bytes."""
    runs = packed.reshape(packed.shape[0], 4, 1, 32)
    return torch.cat([runs & 15, runs >> 4], 2).flatten(1)


def _q4_k(blocks: Tensor) -> Decoded:
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    return _with_minimum(_k_nibbles(blocks[:, 16:]), _half(blocks, 0) * scales, -_half(blocks, 2) * minimums)


def _q5_k(blocks: Tensor) -> Decoded:
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    high = ((blocks[:, 16:48].unsqueeze(1) >> shifts) & 1).flatten(1) << 4
    codes = _k_nibbles(blocks[:, 48:]) | high
    return _with_minimum(codes, _half(blocks, 0) * scales, -_half(blocks, 2) * minimums)


def _q6_k(blocks: Tensor) -> Decoded:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat([low & 15, low >> 4], 2).flatten(2)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    codes = (low | (((high >> shifts) & 3).flatten(2) << 4)).flatten(1)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return codes, _half(blocks, 208) * scales, None


BLOCK_TYPES = {
    "Q4_0": BlockType(32, 18, 4, 32, _q4_0),
    "Q4_1": BlockType(32, 20, 4, 32, _q4_1),
    "Q5_0": BlockType(32, 22, 5, 32, _q5_0),
    "Q5_1": BlockType(32, 24, 5, 32, _q5_1),
    "Q8_0": BlockType(32, 34, 8, 32, _q8_0),
    "Q4_K": BlockType(256, 144, 4, 32, _q4_k),
    "Q5_K": BlockType(256, 176, 5, 32, _q5_k),
    "Q6_K": BlockType(256, 210, 6, 16, _q6_k),
}
"""The types that are kept as they are. Weights of others are dequantised while they load."""


def decode(blocks: Tensor, kind: BlockType) -> Decoded:
    """uint8 [rows, bytes a row] to codes [rows, in], scales and zero points [rows, groups]."""
    rows = blocks.shape[0]
    codes, scales, zeros = kind.decode(blocks.reshape(-1, kind.nbytes))
    return codes.view(rows, -1), scales.view(rows, -1), None if zeros is None else zeros.view(rows, -1)
