"""Weights decoded into the model's own type while they load: any format on any device, at that type's speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo.layers import Unquantized


class Format(Protocol):
    """How the weights of a layer are written."""

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        """See :class:`octavo.contracts.linear.LinearMethod`."""
        ...

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        """The weight that the tensors stand for, float32 [out, in]."""
        ...


class Expanded:
    """A :class:`octavo.contracts.linear.LinearMethod` that keeps no trace of the format."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._plain = Unquantized()

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        params = self.form.params(spec)
        stored = sum(math.prod(param.shape) * param.dtype.itemsize for param in params.values())
        kept = spec.out_features * spec.in_features * spec.dtype.itemsize / stored
        return {name: replace(param, transient=True, kept=kept) for name, param in params.items()}

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        weight = self.form.dequantise(spec, raw).to(spec.dtype)
        return self._plain.finalize(spec, {"weight": weight})

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._plain.apply(weights, x, bias)
