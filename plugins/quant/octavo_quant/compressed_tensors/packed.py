"""compressed-tensors' integer weights without quantised activations: ``pack-quantized``, and plain int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.compressed_tensors.config import Numbers
from octavo_quant.grouped import GroupedWeights, grouped_linear, pack_grouped
from octavo_quant.stored import Stored, floats, modules_of


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """A :class:`octavo.contracts.linear.LinearMethod`.

    ``weight_packed`` int32 [out, in / (32 / bits)] holds codes from its lowest bits on, each moved up by
    2^(bits-1); or ``weight`` int8 [out, in] holds them as they are. ``weight_scale`` [out, groups] (or one number);
    ``weight_zero_point`` int32 [out / (32 / bits), groups], packed along the outputs, or int8 [out, groups];
    ``weight_g_idx`` int32 [in]: each input's group, where groups are not neighbours.
    """

    stored: Stored
    numbers: Numbers

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        packed = self._packed(spec.name)
        rows, size, per = spec.out_features, spec.in_features, 32 // self.numbers.bits
        if packed:
            shape = (rows, -(-size // per))
            weight = ParamSpec(shape=shape, dtype=torch.int32, out_axis=0, in_axis=1, in_pack=(per, 1))
        else:
            weight = ParamSpec(shape=(rows, size), dtype=torch.int8, out_axis=0, in_axis=1)
        params = {"weight_packed" if packed else "weight": weight, "weight_scale": self._scale(spec)}
        if not self.numbers.symmetric:
            params["weight_zero_point"] = self._zero(spec)
        if self._ordered(spec.name):
            # One order a checkpoint layer: merged layers are packed part by part.
            params["weight_g_idx"] = ParamSpec(shape=(size,), dtype=torch.int32, in_axis=None, per_part=True)
        return params

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks or has in another shape."""
        full, bits = spec.full_in or spec.in_features, self.numbers.bits
        group, per = self._group(full), 32 // bits
        if full % group:
            raise self.stored.wrong(
                f"{spec.name}.weight_scale", f"has groups of {group}, which don't divide {full}"
            )
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            why = f"an INT{bits} weight in groups of {group}"
            if self._packed(module):
                rows = (self.stored.shape(f"{module}.weight_packed") or (part,))[0]
                self.stored.need(f"{module}.weight_packed", [(rows, -(-full // per))], ["int32"], why)
            else:
                rows = (self.stored.shape(f"{module}.weight") or (part,))[0]
                self.stored.need(f"{module}.weight", [(rows, full)], ["int8"], why)
            scales: list[tuple[int, ...]] = [(rows, full // group)]
            if self.numbers.strategy == "tensor":
                scales = [(), (1,), (1, 1)]
            self.stored.need(f"{module}.weight_scale", scales, floats(), why)
            if not self.numbers.symmetric:
                self._check_zero(module, rows, full // group)
        if spec.in_features != full and (spec.in_features % group or self._ordered(spec.name)):
            what = "has groups in an order of their own" if self._ordered(spec.name) else f"has groups of {group}"
            raise self.stored.wrong(
                f"{spec.name}.weight_scale",
                f"{what}, which this many ranks can't share: lower executor.tensor_parallel",
            )

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> list[GroupedWeights]:
        codes, group = self._codes(spec, raw), self._group(spec.in_features)
        scales = raw["weight_scale"].float()
        if self.numbers.strategy == "tensor":
            parts = torch.tensor(spec.out_parts, device=scales.device)
            scales = scales.reshape(-1).repeat_interleave(parts, output_size=spec.out_features).unsqueeze(1)
        zeros = self._zeros(spec, raw)
        orders = raw.get("weight_g_idx")
        alike = orders is None or bool((orders == orders[0]).all())
        pieces = [slice(0, spec.out_features)] if alike else _slices(spec.out_parts)
        return [
            self._one(spec, codes[piece], scales[piece], zeros, piece, None if orders is None else orders[i], group)
            for i, piece in enumerate(pieces)
        ]

    def apply(self, weights: list[GroupedWeights], x: Tensor, bias: Tensor | None) -> Tensor:
        if len(weights) == 1:
            return grouped_linear(x, weights[0], bias)
        out = torch.cat([grouped_linear(x, each, None) for each in weights], 1)
        return out if bias is None else out.add_(bias)

    def _one(
        self,
        spec: LinearSpec,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        piece: slice,
        order: Tensor | None,
        group: int,
    ) -> GroupedWeights:
        permutation = None
        if order is not None and bool((order[1:] < order[:-1]).any()):
            permutation = torch.argsort(order, stable=True)
            codes = codes[:, permutation]
        return pack_grouped(
            codes.contiguous(),
            scales,
            None if zeros is None else zeros[piece],
            bits=self.numbers.bits,
            group_size=group,
            permutation=permutation,
            dtype=spec.dtype,
        )

    def _codes(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        bits = self.numbers.bits
        if (packed := raw.get("weight_packed")) is not None:
            return unpack(packed, bits)[:, : spec.in_features]
        return (raw["weight"].to(torch.int16) + (1 << bits - 1)).to(torch.uint8)

    def _zeros(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor | None:
        stored = raw.get("weight_zero_point")
        if stored is None:
            return None
        if stored.dtype != torch.int32:
            return stored.float() + (1 << self.numbers.bits - 1)
        per, before, rows = 32 // self.numbers.bits, 0, []
        for part in spec.out_parts:
            count = -(-part // per)
            rows.append(unpack(stored[before : before + count].T, self.numbers.bits).T[:part])
            before += count
        return torch.cat(rows).float()

    def _group(self, size: int) -> int:
        group = self.numbers.group
        return size if group in (None, -1) or self.numbers.strategy in ("channel", "tensor") else int(group or size)

    def _packed(self, module: str) -> bool:
        return self.stored.has(f"{module}.weight_packed") or not self.stored.known

    def _ordered(self, module: str) -> bool:
        return self.stored.has(f"{module}.weight_g_idx")

    def _scale(self, spec: LinearSpec) -> ParamSpec:
        if self.numbers.strategy == "tensor":
            return self.stored.number(f"{spec.name}.weight_scale")
        group = self._group(spec.full_in or spec.in_features)
        shape = (spec.out_features, -(-spec.in_features // group))
        return ParamSpec(shape=shape, dtype=torch.float32, out_axis=0, in_axis=1, in_pack=(group, 1))

    def _zero(self, spec: LinearSpec) -> ParamSpec:
        group, per = self._group(spec.full_in or spec.in_features), 32 // self.numbers.bits
        columns = -(-spec.in_features // group)
        if self.stored.dtype(f"{spec.name}.weight_zero_point") == "int8":
            shape = (spec.out_features, columns)
            return ParamSpec(shape=shape, dtype=torch.int8, out_axis=0, in_axis=1, in_pack=(group, 1))
        rows = sum(-(-part // per) for part in spec.out_parts)
        return ParamSpec(
            shape=(rows, columns), dtype=torch.int32, out_axis=0, in_axis=1, out_pack=(per, 1), in_pack=(group, 1)
        )

    def _check_zero(self, module: str, rows: int, groups: int) -> None:
        per = 32 // self.numbers.bits
        self.stored.need(
            f"{module}.weight_zero_point",
            [(-(-rows // per), groups), (rows, groups)],
            ["int32", "int8"],
            "an asymmetric integer weight",
        )


def unpack(packed: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] to uint8 [rows, words * (32 / bits)], the lowest bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    fields = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return fields.to(torch.uint8).flatten(-2)


def _slices(parts: tuple[int, ...]) -> list[slice]:
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    return [slice(end - size, end) for end, size in zip(ends, parts, strict=True)]
