"""How FP8 checkpoints store a linear layer, whichever tool wrote them (arXiv 2209.05433; DeepSeek-V3's blocks,
arXiv 2412.19437)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.stored import Stored, floats, modules_of

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3."""
_NAMES = ("weight_scale_inv", "weight_scale")
_SCALE_TYPES = (*floats(), "float8_e8m0fnu")


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """A :class:`octavo_quant.expanded.Format`.

    ``weight`` e4m3 [out, in]; its scale multiplies: one number a checkpoint layer, one an output ([out] or
    [out, 1]), or one a ``block`` of [rows, columns]. ``static``: ``input_scale`` is there, one number a layer, and
    activations are divided by it. ``name`` is the scale's where there is no checkpoint to look at.
    """

    stored: Stored
    block: tuple[int, int] | None = None
    static: bool = False
    name: str = "weight_scale"

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        name = self.scale_name(spec)
        weight = ParamSpec(
            shape=(spec.out_features, spec.in_features), dtype=E4M3, out_axis=0, in_axis=1, convert=False
        )
        params = {"weight": weight, name: self._scale(spec, name)}
        if self.static:
            params["input_scale"] = self.stored.number(f"{spec.name}.input_scale")
        return params

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks or has in another shape."""
        name = self.scale_name(spec)
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows, columns = self.stored.full_shape(spec, module)
            weight = f"{module}.weight"
            self.stored.need(weight, [(rows, spec.full_in or spec.in_features)], ["float8_e4m3fn"], "an FP8 weight")
            shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (rows,), (rows, 1)]
            if self.block is not None:
                high, wide = self.block
                shapes = [(-(-rows // high), -(-columns // wide))]
                self._check_division(module, rows, columns, part, spec)
            why = f"the FP8 weight {list(self.stored.shape(weight) or ())}"
            self.stored.need(f"{module}.{name}", shapes, _SCALE_TYPES, why)
            if self.static:
                self.stored.need(f"{module}.input_scale", [(), (1,), (1, 1)], floats(), "a static activation scale")

    def scale_name(self, spec: LinearSpec) -> str:
        """The suffix of the scale's name: both tools' spellings are in use for either layout."""
        found = self.stored.first(f"{spec.name}.{name}" for name in _NAMES)
        return found.rpartition(".")[2] if found else self.name

    def whole(self, spec: LinearSpec) -> bool:
        """Whether each checkpoint layer has one scale for all of its weights."""
        shape = self.stored.shape(f"{spec.name}.{self.scale_name(spec)}")
        return self.block is None and (shape is None or shape in ((), (1,), (1, 1)))

    def row_scales(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        """What each output's weights are multiplied by, float32 [out]. Not for blocks."""
        scale = raw[self.scale_name(spec)].float()
        if not self.whole(spec):
            return scale.reshape(-1)
        parts = torch.tensor(spec.out_parts, device=scale.device)
        return scale.reshape(-1).repeat_interleave(parts, output_size=spec.out_features)

    def block_scales(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        """float32 [out, columns of blocks]: each output's own, since merged layers may end inside a block."""
        assert self.block is not None
        high = self.block[0]
        scale, rows, before = raw[self.scale_name(spec)].float(), [], 0
        for part in spec.out_parts:
            count = -(-part // high)
            rows.append(scale[before : before + count].repeat_interleave(high, 0)[:part])
            before += count
        return torch.cat(rows)

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        weight = raw["weight"].float()
        if self.block is None:
            return weight * self.row_scales(spec, raw).unsqueeze(1)
        wide = self.block_scales(spec, raw).repeat_interleave(self.block[1], 1)
        return weight.mul_(wide[:, : spec.in_features])

    def _scale(self, spec: LinearSpec, name: str) -> ParamSpec:
        if self.block is None:
            if self.whole(spec):
                return self.stored.number(f"{spec.name}.{name}")
            shape = self.stored.shape(f"{spec.name}.{name}") or (0,)
            return ParamSpec(shape=(spec.out_features, *shape[1:]), dtype=torch.float32, out_axis=0)
        high, wide = self.block
        rows = sum(-(-part // high) for part in spec.out_parts)
        stored = self.stored.dtype(f"{spec.name}.{name}")
        dtype = torch.float8_e8m0fnu if stored == "float8_e8m0fnu" else torch.float32
        shape = (rows, -(-spec.in_features // wide))
        return ParamSpec(shape=shape, dtype=dtype, out_axis=0, in_axis=1, out_pack=(high, 1), in_pack=(wide, 1))

    def _check_division(self, module: str, rows: int, columns: int, part: int, spec: LinearSpec) -> None:
        """Ranks must get whole blocks."""
        assert self.block is not None
        for full, mine, size, what in (
            (rows, part, self.block[0], "outputs"),
            (columns, spec.in_features, self.block[1], "inputs"),
        ):
            if mine != full and mine % size:
                raise self.stored.wrong(
                    f"{module}.weight",
                    f"has {full} {what}, which this many ranks can't share in whole blocks of {size}: lower "
                    "executor.tensor_parallel",
                )
