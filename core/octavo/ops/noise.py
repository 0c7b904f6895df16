"""Random choice that belongs to the request: noise is a function of (seed, position, token id) and nothing else.

The same request therefore draws the same tokens in any batch, in any row, on any device, and again after a
preemption. The integers are exact everywhere; only the last digits of a logarithm may differ between devices.

A token wins with its probability when the one with the largest ``logit - log(E)`` is taken, each ``E`` drawn
from the exponential distribution.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

IntArray = np.ndarray[Any, np.dtype[np.int64]]
UIntArray = np.ndarray[Any, np.dtype[np.uint64]]

_CHUNK_CPU: Final = 1 << 18  # numbers handled at a time, so that temporaries stay in the cache
_CHUNK_GPU: Final = 1 << 26
_LARGEST: Final = 1 - 2.0**-24  # float32 next below 1, as -log(1 - 1) is infinite


def _signed(value: int) -> int:
    """The int32 with the same bits."""
    return value - (1 << 32) if value >> 31 else value


_ODD_1: Final = _signed(0x7FEB352D)
_ODD_2: Final = _signed(0x846CA68B)


def row_keys(seeds: UIntArray, positions: IntArray) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Two well mixed words for each (seed, position): int32 [n, 2], the second one odd."""
    mixed = _mix64(_mix64(seeds) ^ (positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)))
    return (mixed | np.uint64(1 << 32)).view(np.int32).reshape(-1, 2)


def token_words(vocab_size: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A well mixed word for each token id, no two alike: int32 [vocab]."""
    words = np.arange(vocab_size, dtype=np.uint32)
    for shift, odd in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        words ^= words >> np.uint32(shift)
        words *= np.uint32(odd)
    return (words ^ (words >> np.uint32(15))).view(np.int32)


def random_bits(words: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Uniform 31-bit integers, int32 [n, vocab], from ``token_words`` [vocab] and ``row_keys`` [n, 2]."""
    bits = words ^ keys[:, :1]
    bits.mul_(keys[:, 1:])
    shifted = torch.empty_like(bits)
    for shift, odd in ((16, _ODD_1), (15, _ODD_2)):
        torch.bitwise_right_shift(bits, shift, out=shifted)
        shifted.bitwise_and_((1 << (32 - shift)) - 1)  # the shift is arithmetic
        bits.bitwise_xor_(shifted)
        bits.mul_(odd)
    # Here the copied sign is wanted: it clears the top bit, and every 31-bit result has two sources.
    torch.bitwise_right_shift(bits, 16, out=shifted)
    return bits.bitwise_xor_(shifted)


def log_exponential(bits: torch.Tensor) -> torch.Tensor:
    """log(E) for exponentially distributed E, float32, from uniform 31-bit integers."""
    # E = -log(1 - u), u in the middle of one of 2^31 steps: small E, which decide for rare tokens, stay exact.
    noise = bits * (-_LARGEST * 2.0**-31)
    return noise.sub_(2.0**-32).log1p_().neg_().log_()


def draw(
    logits: torch.Tensor, temperature: torch.Tensor | None, words: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [n], each drawn from softmax of its row of ``logits`` float32 [n, vocab] over ``temperature``.

    ``temperature`` float32 [n, 1]; ``None`` where the logits are scaled already. Also the scores float32 [n] that
    the tokens won with: not finite where a row held NaN or +inf, or nothing but -inf.
    """
    budget = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_GPU
    size = max(1, budget // logits.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(logits), size)]
    winners = [
        _race(logits[part], None if temperature is None else temperature[part], words, keys[part]) for part in parts
    ]
    tokens, scores = zip(*winners, strict=True)
    return (tokens[0], scores[0]) if len(winners) == 1 else (torch.cat(tokens), torch.cat(scores))


def _race(
    logits: torch.Tensor, temperature: torch.Tensor | None, words: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    noise = log_exponential(random_bits(words, keys))
    scaled = logits if temperature is None else logits / temperature
    scores, tokens = torch.sub(scaled, noise, out=noise).max(dim=1)
    return tokens, scores


def mixed_seeds(seeds: UIntArray) -> IntArray:
    """What ``row_keys_on_device`` takes instead of seeds: int64 [n]."""
    return _mix64(seeds).view(np.int64)


def row_keys_on_device(mixed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``row_keys`` for positions that only the device knows: int32 [n, 2] from two int64 [n]."""
    values = mixed ^ (positions * _signed64(0x9E3779B97F4A7C15))
    for shift, odd in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * _signed64(odd)
    values = (values ^ _shifted(values, 31)) | (1 << 32)
    return values.unsqueeze(1).view(torch.int32)


def _signed64(value: int) -> int:
    """The int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(values: torch.Tensor, shift: int) -> torch.Tensor:
    """Shifted right as if unsigned."""
    return (values >> shift) & ((1 << (64 - shift)) - 1)


def _mix64(values: UIntArray) -> UIntArray:
    """The finaliser of splitmix64: a bijection whose output looks random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
