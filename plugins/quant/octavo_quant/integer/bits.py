"""Codes out of the 32-bit words of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unpack(words: Tensor, bits: int, axis: int) -> Tensor:
    """int32 words to uint8 codes along ``axis`` (0 or 1) of a matrix: a stream of bits, the lowest first.

    Codes of 3 bits may lie across two words: 32 of them in 3.
    """
    if axis == 1:
        return unpack(words.T, bits, 0).T
    if 32 % bits:
        return _unpack_stream(words, bits)
    per, mask = 32 // bits, 2**bits - 1
    out = torch.empty((words.shape[0] * per, *words.shape[1:]), dtype=torch.uint8, device=words.device)
    for field in range(per):
        out[field::per] = (words >> (field * bits)) & mask
    return out


def _unpack_stream(words: Tensor, bits: int) -> Tensor:
    count = words.shape[0] * 32 // bits
    out = torch.empty((count, *words.shape[1:]), dtype=torch.uint8, device=words.device)
    for position in range(32):  # codes that begin at the same bit of their word, 32 codes apart
        word, bit = divmod(position * bits, 32)
        low = (words[word::bits].long() & 0xFFFFFFFF) >> bit
        if bit + bits > 32:
            low |= (words[word + 1 :: bits].long() & 0xFFFFFFFF) << (32 - bit)
        out[position::32] = low & (2**bits - 1)
    return out


def unpack_parts(words: Tensor, bits: int, parts: Sequence[int]) -> Tensor:
    """[groups, words] of merged layers, each of which begins a new word, to uint8 [groups, sum(parts)]."""
    pieces, before = [], 0
    for part in parts:
        count = -(-part * bits // 32)
        pieces.append(unpack(words[:, before : before + count], bits, 1)[:, :part])
        before += count
    return torch.cat(pieces, 1)
