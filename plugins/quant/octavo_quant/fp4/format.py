"""How checkpoints store FP4 and MXFP8 weights (OCP Microscaling Formats 1.0; NVIDIA's NVFP4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.codebook.weights import E2M1, Codes, unpack_nibbles, wide_scales
from octavo_quant.fp8.format import E4M3
from octavo_quant.stored import Stored, floats, modules_of

NV, MX = 16, 32
"""Inputs that share a scale."""


@dataclass(frozen=True, slots=True)
class Fp4Format:
    """A :class:`octavo_quant.codebook.linear.CodebookFormat`.

    ``packed`` uint8 [out, in / 2], the low half of a byte first. ``weight_scale``: of NVFP4 e4m3 [out, in / 16],
    of MXFP4 powers of two, uint8 (or e8m0) [out, in / 32]. NVFP4 has one more scale for the layer, named ``whole``,
    by which compressed-tensors divides (``divides``) and ModelOpt multiplies.
    """

    stored: Stored
    packed: str = "weight_packed"
    whole: str | None = None
    divides: bool = True

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return MX if self.whole is None else NV

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        rows, size, group = spec.out_features, spec.in_features, self.group
        scale = E4M3 if self.whole else _power(self.stored, spec)
        params = {
            self.packed: ParamSpec(
                shape=(rows, size // 2), dtype=torch.uint8, out_axis=0, in_axis=1, in_pack=(2, 1)
            ),
            "weight_scale": ParamSpec(
                shape=(rows, size // group), dtype=scale, out_axis=0, in_axis=1, in_pack=(group, 1), convert=False
            ),
        }
        if self.whole:
            params[self.whole] = self.stored.number(f"{spec.name}.{self.whole}")
        return params

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks, has in another shape, or what ranks can't share."""
        full, group = spec.full_in or spec.in_features, self.group
        why = f"an FP4 weight in groups of {group}"
        if full % group or spec.in_features % group:
            raise self.stored.wrong(
                f"{spec.name}.weight_scale", f"has groups of {group}, not a whole number a rank"
            )
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows = (self.stored.shape(f"{module}.{self.packed}") or (part,))[0]
            self.stored.need(f"{module}.{self.packed}", [(rows, full // 2)], ["uint8"], why)
            types = ["float8_e4m3fn"] if self.whole else ["uint8", "float8_e8m0fnu"]
            self.stored.need(f"{module}.weight_scale", [(rows, full // group)], types, why)
            if self.whole:
                self.stored.need(f"{module}.{self.whole}", [(), (1,), (1, 1)], floats(), why)

    def codes(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Codes:
        """See :class:`octavo_quant.codebook.linear.CodebookFormat`."""
        codes, scales, rows = unpack_nibbles(raw[self.packed]), raw["weight_scale"], None
        if self.whole:
            whole = raw[self.whole].reshape(-1)
            parts = torch.tensor(spec.out_parts, device=codes.device)
            rows = (1 / whole if self.divides else whole).repeat_interleave(parts, output_size=spec.out_features)
        elif scales.dtype != torch.uint8:
            scales = scales.view(torch.uint8)
        return Codes(codes, torch.tensor(E2M1, device=codes.device), scales, self.group, rows)

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        return self.codes(spec, raw).dequantise()


@dataclass(frozen=True, slots=True)
class Mxfp8Format:
    """A :class:`octavo_quant.expanded.Format`: ``weight`` e4m3 [out, in], ``weight_scale`` powers of two, uint8 or
    e8m0, [out, in / 32]."""

    stored: Stored

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        rows, size = spec.out_features, spec.in_features
        power = _power(self.stored, spec)
        return {
            "weight": ParamSpec(shape=(rows, size), dtype=E4M3, out_axis=0, in_axis=1, convert=False),
            "weight_scale": ParamSpec(
                shape=(rows, size // MX), dtype=power, out_axis=0, in_axis=1, in_pack=(MX, 1), convert=False
            ),
        }

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks, has in another shape, or what ranks can't share."""
        full = spec.full_in or spec.in_features
        if full % MX or spec.in_features % MX:
            raise self.stored.wrong(f"{spec.name}.weight_scale", f"has groups of {MX}, not a whole number a rank")
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows = (self.stored.shape(f"{module}.weight") or (part,))[0]
            self.stored.need(f"{module}.weight", [(rows, full)], ["float8_e4m3fn"], "an MXFP8 weight")
            types = ["uint8", "float8_e8m0fnu"]
            self.stored.need(f"{module}.weight_scale", [(rows, full // MX)], types, "an MXFP8 weight")

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        scales = wide_scales(raw["weight_scale"]).repeat_interleave(MX, 1)
        return raw["weight"].float().mul_(scales)


def _power(stored: Stored, spec: LinearSpec) -> torch.dtype:
    return torch.float8_e8m0fnu if stored.dtype(f"{spec.name}.weight_scale") == "float8_e8m0fnu" else torch.uint8


Kind = Literal["nvfp4", "mxfp4"]


def fp4_format(stored: Stored, kind: Kind) -> Fp4Format:
    """As compressed-tensors writes it."""
    return Fp4Format(stored, whole="weight_global_scale" if kind == "nvfp4" else None)
