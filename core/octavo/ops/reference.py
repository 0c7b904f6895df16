"""Torch reference of the fused operations: what they mean, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis (arXiv 1910.07467), in float32, answered in ``x``'s dtype."""
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    out: Tensor = (wide * scale).to(x.dtype).mul_(weight)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``residual += x`` in place, then the norm of ``residual``."""
    return rms_norm(residual.add_(x), weight, eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """``x`` [tokens, in] times ``weight`` [out, in], plus ``bias`` [out]; answered in ``dtype``, or ``x``'s."""
    out = F.linear(x, weight, bias)
    return out if dtype is None else out.to(dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's gate (arXiv 2002.05202): [tokens, 2 * n] holding gate and up side by side, to [tokens, n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def rope(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) on ``heads`` [tokens, heads, head_dim].

    ``cos`` and ``sin`` [tokens, 1, rotary_dim] float32, the first half of ``sin`` negated. Halves are rotated (the
    Hugging Face layout): element i pairs with i + rotary_dim / 2; elements past rotary_dim stay as they are.
    """
    width = cos.shape[-1]
    wide = heads[..., :width].float()
    turned = torch.addcmul(wide * cos, wide.roll(width // 2, -1), sin).to(heads.dtype)
    return turned if width == heads.shape[-1] else torch.cat((turned, heads[..., width:]), dim=-1)


def mask_logits(logits: Tensor, index: Tensor, bits: Tensor) -> None:
    """Rows ``index`` int64 [m] of ``logits`` float32 [n, vocab]: -inf, in place, where the packed mask ``bits``
    int32 [m, ceil(vocab / 32)] has no bit. Bit ``i % 32`` of word ``i // 32`` is token ``i``."""
    if not bits.is_cuda:  # numpy unpacks bits ten times as fast
        flags = np.unpackbits(~bits.numpy().view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
        for row, barred in zip(index.tolist(), torch.from_numpy(flags.view(np.bool_)), strict=True):
            logits[row].masked_fill_(barred, -torch.inf)
        return
    barred = barred_tokens(bits, logits.shape[1])
    logits.index_copy_(0, index, logits.index_select(0, index).masked_fill_(barred, -torch.inf))


def barred_tokens(bits: Tensor, vocab: int) -> Tensor:
    """Bool [m, vocab], true where the packed mask ``bits`` int32 [m, width] has no bit; on any device."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flags = bits.view(torch.uint8).unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(1)
    return flags.flatten(1)[:, :vocab] == 0


def qk_norm_rope(
    heads: Tensor, query_weight: Tensor, key_weight: Tensor, queries: int, eps: float, cos: Tensor, sin: Tensor
) -> Tensor:
    """Each head normed by itself, then :func:`rope`. May work in place.

    Of ``heads`` [tokens, heads, head_dim] the first ``queries`` have one weight [head_dim], the rest the other.
    """
    query = rms_norm(heads[:, :queries], query_weight, eps)
    key = rms_norm(heads[:, queries:], key_weight, eps)
    return rope(torch.cat((query, key), dim=1), cos, sin)
