"""Packed masks of structured outputs, applied where the logits are."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ahead import launch

_WORDS = 64  # of 32 tokens, a program


@triton.jit
def _mask_kernel(logits_ptr, index_ptr, bits_ptr, vocab, words, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WORDS * 32 + tl.arange(0, WORDS * 32)
    inside = column < vocab
    word = tl.load(bits_ptr + row * words + column // 32, mask=inside, other=-1)
    barred = ((word >> (column % 32)) & 1) == 0
    at = logits_ptr + tl.load(index_ptr + row) * vocab + column
    tl.store(at, float("-inf"), mask=inside & barred)  # what is allowed is neither read nor written


def mask_logits(logits: torch.Tensor, index: torch.Tensor, bits: torch.Tensor) -> None:
    """See :func:`octavo.ops.reference.mask_logits`; ``logits`` and ``bits`` contiguous."""
    rows, vocab = bits.shape[0], logits.shape[1]
    if rows:
        grid = (rows, triton.cdiv(vocab, _WORDS * 32))
        launch(_mask_kernel, grid, logits, index, bits, vocab, bits.shape[1], WORDS=_WORDS, num_warps=4)
