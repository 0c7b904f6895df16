"""How checkpoints store INT8 linears (compressed-tensors' ``int-quantized``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.stored import Stored, floats, modules_of

_ONE = ((), (1,), (1, 1))


@dataclass(frozen=True, slots=True)
class Int8Format:
    """A :class:`octavo_quant.expanded.Format`.

    ``weight`` int8 [out, in]; ``weight_scale`` one number, or [out, 1]. ``weight_zero_point`` of the same shape may
    be there. ``static``: ``input_scale`` is there, one number a layer, and ``input_zero_point`` may be.
    """

    stored: Stored
    static: bool = False

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        shape = (spec.out_features, spec.in_features)
        params = {"weight": ParamSpec(shape=shape, dtype=torch.int8, out_axis=0, in_axis=1)}
        params["weight_scale"] = self._rows(spec, "weight_scale", torch.float32)
        for name in ("weight_zero_point", "input_scale", "input_zero_point"):
            if (name.startswith("weight") or self.static) and self.stored.has(f"{spec.name}.{name}"):
                params[name] = self._rows(spec, name, self._type(spec, name))
        return params

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks or has in another shape."""
        for module in modules_of(spec):
            rows, _ = self.stored.full_shape(spec, module)
            why = "an INT8 weight"
            self.stored.need(f"{module}.weight", [(rows, spec.full_in or spec.in_features)], ["int8"], why)
            self.stored.need(f"{module}.weight_scale", [*_ONE, (rows,), (rows, 1)], floats(), why)
            if self.static:
                self.stored.need(f"{module}.input_scale", _ONE, floats(), "a static activation scale")

    def row_scales(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        """float32 [out]."""
        return self.spread(spec, raw["weight_scale"].float())

    def centred(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> bool:
        """Whether the weights' zero is 0."""
        zeros = raw.get("weight_zero_point")
        return zeros is None or not bool(zeros.any())

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        weight = raw["weight"].float()
        if (zeros := raw.get("weight_zero_point")) is not None:
            weight -= self.spread(spec, zeros.float()).unsqueeze(1)
        return weight.mul_(self.row_scales(spec, raw).unsqueeze(1))

    def spread(self, spec: LinearSpec, numbers: Tensor) -> Tensor:
        """One number an output, from one a checkpoint layer."""
        if numbers.numel() == spec.out_features:
            return numbers.reshape(-1)
        parts = torch.tensor(spec.out_parts, device=numbers.device)
        return numbers.reshape(-1).repeat_interleave(parts, output_size=spec.out_features)

    def _rows(self, spec: LinearSpec, name: str, dtype: torch.dtype) -> ParamSpec:
        shape = self.stored.shape(f"{spec.name}.{name}")
        if shape is None or shape not in _ONE:
            tail = (1,) if shape is None else shape[1:]
            return ParamSpec(shape=(spec.out_features, *tail), dtype=dtype, out_axis=0)
        return ParamSpec(shape=shape, dtype=dtype, per_part=True)

    def _type(self, spec: LinearSpec, name: str) -> torch.dtype:
        found = self.stored.dtype(f"{spec.name}.{name}")
        return torch.float32 if found in floats() else getattr(torch, str(found))
