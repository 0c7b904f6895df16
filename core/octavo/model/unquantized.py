"""Linear layers in the model's own dtype.

On a CPU in float32 the weights are repacked once into oneDNN's blocked layout: MKL's product is up to twice
slower at the small batches of a decode step. Large batches are on a par.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo.ops import reference


class Unquantized:
    """A :class:`octavo.contracts.linear.LinearMethod` with one parameter, ``weight`` [out, in].

    ``linear`` is the operation of that name in :class:`octavo.ops.Ops`.
    """

    def __init__(self, linear: Callable[..., Tensor] = reference.linear) -> None:
        self._linear = linear

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return {
            "weight": ParamSpec(
                shape=(spec.out_features, spec.in_features), dtype=spec.dtype, out_axis=0, in_axis=1
            )
        }

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        weight = raw["weight"]
        if spec.device.type == "cpu" and spec.dtype == torch.float32 and _can_pack():
            return torch.ops.mkldnn._reorder_linear_weight(weight, None)
        return weight

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        """As the contract says; ``dtype``, where given, is that of the answer."""
        if weights.layout == torch._mkldnn:  # type: ignore[attr-defined]
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")
            return out if dtype is None else out.to(dtype)
        return self._linear(x, weights, bias, dtype)


def _can_pack() -> bool:
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
