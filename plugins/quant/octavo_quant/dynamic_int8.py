"""Dynamic INT8 on a CPU through FBGEMM: symmetric INT8 weights a channel, 8-bit activations a token.

FBGEMM's dynamic product quantises all activations of a call with one scale, which would let one request's
outliers change its neighbours' answers. So each row is first divided by its largest magnitude, and one more row
holding -1 and 1 pins the call's range: every token gets its own scale, whatever shares its batch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo_quant.native_cpu import NativeWeights, native_linear, native_takes, pack_native

_TINY = 1e-12


class DynamicInt8Scheme:
    """A :class:`octavo.contracts.linear.QuantScheme`."""

    def __init__(self, skip: Sequence[str]) -> None:
        self._skip = [re.compile(pattern) for pattern in skip]
        self._method, self._native = DynamicInt8(), NativeInt8()

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        if any(pattern.search(spec.name) for pattern in self._skip):
            return None
        native = native_takes(spec.in_features, spec.in_features, spec.dtype, spec.device)
        return self._native if native else self._method


class NativeInt8:
    """The same weights through this plugin's C++, with activations as 16-bit integers."""

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return _plain_weight(spec)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> NativeWeights:
        weight = raw["weight"]
        scales = _scales(weight)
        codes = (weight / scales.unsqueeze(1)).round_().add_(128).to(torch.uint8)
        return pack_native(codes, scales.unsqueeze(1), None, bits=8, group_size=weight.shape[1])

    def apply(self, weights: NativeWeights, x: Tensor, bias: Tensor | None) -> Tensor:
        return native_linear(x, weights, bias)


class DynamicInt8:
    """A :class:`octavo.contracts.linear.LinearMethod` that reads full-precision weights."""

    def __init__(self) -> None:
        # Without VNNI, pairs of 8-bit products overflow their 16-bit sum; 7-bit activations can't.
        self._seven_bits = not torch.cpu._is_vnni_supported()

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return _plain_weight(spec)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        weight = raw["weight"]
        scales = _scales(weight).double()
        zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
        with warnings.catch_warnings():
            # The constructors are deprecated in favour of torchao, which packs into the same product.
            warnings.simplefilter("ignore")
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantised, None)

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        tokens = x.shape[0]
        padded = x.new_zeros(tokens + 1, x.shape[1])
        largest = x.abs().amax(1, keepdim=True).clamp_(min=_TINY)
        torch.div(x, largest, out=padded[:tokens])
        padded[tokens, 0], padded[tokens, 1] = -1.0, 1.0
        out: Tensor = torch.ops.quantized.linear_dynamic(padded, weights, self._seven_bits)[:tokens]
        out = out.mul_(largest)
        return out if bias is None else out.add_(bias)


def _plain_weight(spec: LinearSpec) -> dict[str, ParamSpec]:
    shape = (spec.out_features, spec.in_features)
    return {"weight": ParamSpec(shape=shape, dtype=spec.dtype, out_axis=0, in_axis=1)}


def _scales(weight: Tensor) -> Tensor:
    """One a channel, float32 [out]."""
    return weight.abs().amax(1).clamp_(min=_TINY).div_(127)
