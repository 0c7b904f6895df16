"""FP8 linear layers on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.fp8.format import Fp8Format
from octavo_quant.fp8.reference import quantise_weight
from octavo_quant.scratch import reserve

Activations = Literal["fp8", "16-bit"]
FEW = 64
"""Up to this many tokens the product is bound by reading weights."""
GROUP = 128


@dataclass(frozen=True, slots=True)
class Fp8Weights:
    """``codes`` e4m3 [out, in]; ``scales`` float32 [out], or [out, groups of 128 inputs]; ``fixed`` float32 [1]:
    the scale of all activations, where it is known beforehand."""

    codes: Tensor
    scales: Tensor
    fixed: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Fp8Linear:
    """A :class:`octavo.contracts.linear.LinearMethod` for checkpoints in FP8.

    Activations are quantised token by token (or with the checkpoint's fixed scale), so that no token's answer
    depends on its batch. Merged layers keep each its own scale: one an output costs nothing more. ``upper`` bounds
    the magnitude that a token's scale is made for. With ``activations`` 16-bit only weights are FP8.
    """

    form: Fp8Format
    upper: float | None = None
    activations: Activations = "fp8"

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return self.form.params(spec)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Fp8Weights:
        reserve(spec.device)
        if self.form.block is not None:
            return Fp8Weights(raw["weight"], self.form.block_scales(spec, raw).contiguous())
        fixed = raw["input_scale"].float().max().reshape(1) if self.form.static else None
        return Fp8Weights(raw["weight"], self.form.row_scales(spec, raw).contiguous(), fixed)

    def apply(self, weights: Fp8Weights, x: Tensor, bias: Tensor | None) -> Tensor:
        return multiply(weights, x, bias, self.activations, self.upper)


@dataclass(frozen=True, slots=True)
class OnlineFp8Linear:
    """A :class:`octavo.contracts.linear.LinearMethod` that makes FP8 of 16-bit weights while they load.

    ``scales``: one for each checkpoint layer (``tensor``) or one an output (``channel``).
    """

    scales: Literal["tensor", "channel"] = "channel"
    activations: Activations = "fp8"

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return full_weight(spec)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Fp8Weights:
        reserve(spec.device)
        parts = spec.out_parts if self.scales == "tensor" else None
        return Fp8Weights(*quantise_weight(raw["weight"], parts))

    def apply(self, weights: Fp8Weights, x: Tensor, bias: Tensor | None) -> Tensor:
        return multiply(weights, x, bias, self.activations)


@dataclass(frozen=True, slots=True)
class OnlineFp8Format:
    """A :class:`octavo_quant.expanded.Format`: what FP8 makes of 16-bit weights, where nothing computes in it."""

    scales: Literal["tensor", "channel"] = "channel"

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return full_weight(spec)

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        codes, scales = quantise_weight(raw["weight"], spec.out_parts if self.scales == "tensor" else None)
        return codes.float() * scales.unsqueeze(1)


def full_weight(spec: LinearSpec) -> dict[str, ParamSpec]:
    """The weight of an unquantised checkpoint, gone as soon as its layer is quantised."""
    shape = (spec.out_features, spec.in_features)
    kept = 1 / spec.dtype.itemsize
    return {"weight": ParamSpec(shape=shape, dtype=spec.dtype, out_axis=0, in_axis=1, transient=True, kept=kept)}


def multiply(
    weights: Fp8Weights, x: Tensor, bias: Tensor | None, activations: Activations, upper: float | None = None
) -> Tensor:
    """The product, by whichever kernel reads least for this many tokens."""
    from octavo_quant.fp8 import launch

    if activations == "16-bit":
        return launch.matmul(x, None, weights.codes, weights.scales, bias, x.dtype)
    if weights.scales.dim() == 2:
        codes, scales = launch.quantise_groups(x, GROUP)
        return launch.matmul(codes, scales, weights.codes, weights.scales, bias, x.dtype)
    codes, scales = launch.quantise_rows(x, weights.fixed, upper)
    if x.shape[0] <= FEW:
        return launch.matmul(codes, scales, weights.codes, weights.scales, bias, x.dtype)
    return scaled_matmul(codes, scales, weights, bias, x.dtype)


def scaled_matmul(codes: Tensor, scales: Tensor, weights: Fp8Weights, bias: Tensor | None, dtype: Any) -> Tensor:
    """cuBLAS, with a scale for each token and each output. It answers in bfloat16."""
    out: Tensor = torch._scaled_mm(
        codes,
        weights.codes.t(),
        scale_a=scales,
        scale_b=weights.scales.unsqueeze(0),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    out = out.to(dtype)
    return out if bias is None else out.add_(bias)


def fits(spec: LinearSpec, block: tuple[int, int] | None) -> bool:
    """Whether the kernels take a layer of this shape, with scales for blocks of this size."""
    even = spec.in_features % 16 == 0 and spec.out_features % 16 == 0
    return even and (block is None or block[1] == GROUP)
