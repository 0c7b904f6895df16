"""INT8 linear layers: Triton on a GPU, FBGEMM on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo.layers import Unquantized
from octavo_quant.dynamic_int8 import DynamicInt8
from octavo_quant.expanded import Expanded
from octavo_quant.scratch import reserve
from octavo_quant.w8a8.format import Int8Format


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """``codes`` int8 [out, in], ``scales`` float32 [out]. ``fixed``: scale and zero point of all activations,
    float32 [1] each. ``sums`` float32 [out] of the codes, where activations have a zero point."""

    codes: Tensor
    scales: Tensor
    fixed: tuple[Tensor, Tensor] | None
    sums: Tensor | None


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """A :class:`octavo.contracts.linear.LinearMethod` for GPUs. Weights with a zero point are decoded instead."""

    form: Int8Format
    symmetric: bool = True

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return self.form.params(spec)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        reserve(spec.device)
        if not self.form.centred(spec, raw):
            return self.form.dequantise(spec, raw).to(spec.dtype)
        codes, fixed = raw["weight"], None
        if self.form.static:
            zero = raw.get("input_zero_point")
            largest = raw["input_scale"].float().argmax()
            zero = torch.zeros_like(raw["input_scale"]) if zero is None else zero
            fixed = _one(raw["input_scale"], largest), _one(zero, largest)
        plain = self.symmetric and (fixed is None or not bool(fixed[1].any()))
        sums = None if plain else codes.sum(1, dtype=torch.int32).float()
        return Int8Weights(codes, self.form.row_scales(spec, raw).contiguous(), fixed, sums)

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        if not isinstance(weights, Int8Weights):
            return Unquantized().apply(weights, x, bias)
        from octavo_quant.fp8.launch import matmul
        from octavo_quant.w8a8.launch import quantise

        codes, scales, zeros = quantise(x, weights.fixed, self.symmetric)
        shift = None if weights.sums is None else zeros
        return matmul(codes, scales, weights.codes, weights.scales, bias, x.dtype, x_zeros=shift, sums=weights.sums)


def _one(numbers: Tensor, at: Tensor) -> Tensor:
    return numbers.float().reshape(-1)[at].reshape(1).contiguous()


class CpuInt8Linear:
    """A :class:`octavo.contracts.linear.LinearMethod` for CPUs: FBGEMM's product, in float32.

    Activations are quantised token by token, where the checkpoint has a fixed scale as well: it costs no more
    and loses less.
    """

    def __init__(self, form: Int8Format) -> None:
        self._form = form
        self._product = DynamicInt8()

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return self._form.params(spec)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        scales = self._form.row_scales(spec, raw).double()
        zeros = torch.zeros(spec.out_features, dtype=torch.int64)
        if (stored := raw.get("weight_zero_point")) is not None:
            zeros += self._form.spread(spec, stored).long()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see DynamicInt8
            weight = torch._make_per_channel_quantized_tensor(raw["weight"].contiguous(), scales, zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._product.apply(weights, x, bias)


def int8_method(form: Int8Format, spec: LinearSpec, on_gpu: bool, symmetric: bool) -> LinearMethod:
    """The fastest way there is for a layer here."""
    if on_gpu and spec.in_features % 16 == 0 and spec.out_features % 16 == 0:
        return Int8Linear(form, symmetric)
    fbgemm = not on_gpu and spec.dtype == torch.float32 and "fbgemm" in torch.backends.quantized.supported_engines
    return CpuInt8Linear(form) if fbgemm else Expanded(form)
