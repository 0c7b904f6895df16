"""The operations of :mod:`octavo.ops` in one pass each, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_cpu.library import load


class NativeOps:
    """Bound to the number of threads; methods mean what :mod:`octavo.ops.reference` says."""

    def __init__(self, threads: int) -> None:
        library, self._threads = load(), threads
        self._norm, self._add_norm = library.octavo_rms_norm, library.octavo_add_rms_norm
        self._silu, self._rope = library.octavo_silu_mul, library.octavo_rope

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, size = torch.empty_like(x), x.shape[-1]
        self._norm(x.data_ptr(), weight.data_ptr(), x.numel() // size, size, eps, out.data_ptr(), self._threads)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not residual.is_contiguous():
            return self.rms_norm(residual.add_(x), weight, eps)
        x = x.contiguous()
        out, size = torch.empty_like(x), x.shape[-1]
        self._add_norm(
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            x.numel() // size,
            size,
            eps,
            out.data_ptr(),
            self._threads,
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(tokens, size)
        self._silu(gate_up.data_ptr(), tokens, size, out.data_ptr(), self._threads)
        return out

    def rope(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self._turn(heads, cos, sin, None, None, 0, 0.0)

    def qk_norm_rope(
        self,
        heads: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        queries: int,
        eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        return self._turn(heads, cos, sin, query_weight.data_ptr(), key_weight.data_ptr(), queries, eps)

    def _turn(
        self,
        heads: Tensor,
        cos: Tensor,
        sin: Tensor,
        query_weight: int | None,
        key_weight: int | None,
        queries: int,
        eps: float,
    ) -> Tensor:
        heads = _rows(heads)
        tokens, count, size = heads.shape
        out = torch.empty(tokens, count, size)
        self._rope(
            heads.data_ptr(),
            heads.stride(0),
            tokens,
            count,
            size,
            cos.data_ptr(),
            sin.data_ptr(),
            cos.shape[-1],
            query_weight,
            key_weight,
            queries,
            eps,
            out.data_ptr(),
            self._threads,
        )
        return out


def _rows(heads: Tensor) -> Tensor:
    """``heads`` [tokens, heads, size], each token's contiguous."""
    dense = heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]
    return heads if dense else heads.contiguous()
