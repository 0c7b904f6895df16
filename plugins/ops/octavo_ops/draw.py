"""Sampling without a sort: noise made where it is needed, and the maximum taken in the same pass.

Meaning: :func:`octavo.ops.noise.draw`. The integers are the same; the logarithms agree to about 4e-6.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ahead import launch

_BLOCK = 1024
_TILES = 8  # tiles of a program, one after another


@triton.jit
def _mix(bits, shift: tl.constexpr, odd: tl.constexpr):
    high = (bits.to(tl.uint32, bitcast=True) >> shift).to(tl.int32, bitcast=True)
    return (bits ^ high) * odd


@triton.jit
def _log_exponential(bits):
    """log(-log(1 - u)), u from 31 uniform bits."""
    u = bits.to(tl.float32) * (0.999999940395355224609375 / 2147483648.0) + 2.3283064365386963e-10
    # -log(1 - u): a series where the logarithm's argument is near 1, since the GPU's own loses digits there.
    series = 1.0 / 8
    series = series * u + 1.0 / 7
    series = series * u + 1.0 / 6
    series = series * u + 1.0 / 5
    series = series * u + 1.0 / 4
    series = series * u + 1.0 / 3
    series = series * u + 1.0 / 2
    series = (series * u + 1.0) * u
    return tl.log(tl.where(u < 0.0625, series, -tl.log(1.0 - u)))


@triton.jit
def _race_kernel(
    logits_ptr,
    temperature_ptr,
    words_ptr,
    keys_ptr,
    best_ptr,
    token_ptr,
    vocab,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    key = tl.load(keys_ptr + 2 * row)
    odd = tl.load(keys_ptr + 2 * row + 1)
    lane = tl.arange(0, BLOCK)
    temperature = tl.load(temperature_ptr + row) if SCALE else 1.0
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    token = tl.zeros((BLOCK,), tl.int32)
    spoilt = tl.zeros((BLOCK,), tl.int32)
    for tile in range(TILES):
        column = (part * TILES + tile) * BLOCK + lane
        inside = column < vocab
        bits = (tl.load(words_ptr + column, mask=inside, other=0) ^ key) * odd
        bits = _mix(bits, 16, 2146121005)
        bits = _mix(bits, 15, -2073254261)
        bits = bits ^ (bits >> 16)
        scaled = tl.load(logits_ptr + row * vocab + column, mask=inside, other=float("-inf"))
        if SCALE:
            scaled = tl.div_rn(scaled, temperature)  # rounded as torch divides: neighbours never change a draw
        value = scaled - _log_exponential(bits)
        better = value > best
        spoilt |= (value != value).to(tl.int32)
        best = tl.where(better, value, best)
        token = tl.where(better, column, token)
    winner = tl.max(best, axis=0)
    # Of equals the lowest id, as the reference takes the first.
    chosen = tl.min(tl.where(best == winner, token, vocab - 1), axis=0)
    at = row * tl.num_programs(1) + part
    tl.store(best_ptr + at, tl.where(tl.max(spoilt, axis=0) > 0, float("nan"), winner))
    tl.store(token_ptr + at, chosen.to(tl.int64))


def draw(
    logits: torch.Tensor, temperature: torch.Tensor | None, words: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [n] from ``logits`` float32 [n, vocab], contiguous, and their scores float32 [n]."""
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, _BLOCK * _TILES)
    best = torch.empty((rows, parts), dtype=torch.float32, device=logits.device)
    token = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
    launch(
        _race_kernel,
        (rows, parts),
        logits,
        logits if temperature is None else temperature,
        words,
        keys,
        best,
        token,
        vocab,
        SCALE=temperature is not None,
        BLOCK=_BLOCK,
        TILES=_TILES,
        num_warps=4,
    )
    scores, parts_of = best.max(dim=1, keepdim=True)
    return token.gather(1, parts_of).squeeze(1), scores.squeeze(1)
