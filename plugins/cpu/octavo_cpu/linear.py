"""Float32 linear layers through the native product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_cpu.library import load

_PANEL = 16


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights in panels of 16 outputs, float32 [panels, inputs, 16], and where they start in memory."""

    panels: Tensor
    address: int
    outputs: int
    inputs: int


class NativeLinear:
    """A :class:`octavo.contracts.linear.LinearMethod` with one parameter, ``weight`` [out, in]."""

    def __init__(self, threads: int) -> None:
        library = load()
        self._pack, self._product, self._threads = library.octavo_linear_pack, library.octavo_linear, threads

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        shape = (spec.out_features, spec.in_features)
        return {"weight": ParamSpec(shape=shape, dtype=spec.dtype, out_axis=0, in_axis=1)}

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Packed:
        weight = raw["weight"].contiguous()
        outputs, inputs = weight.shape
        panels = torch.empty(-(-outputs // _PANEL), inputs, _PANEL)
        self._pack(weight.data_ptr(), outputs, inputs, panels.data_ptr())
        return Packed(panels, panels.data_ptr(), outputs, inputs)

    def apply(self, weights: Packed, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        tokens = x.shape[0]
        out = torch.empty(tokens, weights.outputs)
        self._product(
            x.data_ptr(),
            tokens,
            weights.address,
            weights.outputs,
            weights.inputs,
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            self._threads,
        )
        return out
