"""GGUF files kept quantised in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo_quant.grouped import GroupedWeights, merged_linear, pack_grouped, priced
from octavo_quant.integer.gguf_blocks import BLOCK_TYPES, decode
from octavo_quant.stored import modules_of


@dataclass(frozen=True, slots=True)
class GgufLinear:
    """A :class:`octavo.contracts.linear.LinearMethod` of layers whose merged parts may have different types.

    ``kinds`` are the types of the parts, in order. There is a tensor ``weight.TYPE``, uint8 [out, bytes a row], for
    each type among them; a part is in the one of its own type, and missing in the others.
    """

    kinds: tuple[str, ...]

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        found = {}
        names = list(dict.fromkeys(self.kinds))
        for name in names:
            kind = BLOCK_TYPES[name]
            found[f"weight.{name}"] = ParamSpec(
                shape=(spec.out_features, spec.in_features // kind.elements * kind.nbytes),
                dtype=torch.uint8,
                out_axis=0,
                in_axis=1,
                in_pack=(kind.elements, kind.nbytes),
                optional=len(names) > 1,
            )
        # A part is stored in one of the tensors only; what it takes packed is about the same for all.
        kind = BLOCK_TYPES[names[0]]
        return priced(spec, found, bits=kind.bits, group=kind.group, packed=True)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> list[GroupedWeights]:
        made = []
        for name, rows in _runs(self.kinds, spec.out_parts):
            kind = BLOCK_TYPES[name]
            codes, scales, zeros = decode(raw[f"weight.{name}"][rows], kind)
            made.append(pack_grouped(codes, scales, zeros, bits=kind.bits, group_size=kind.group, dtype=spec.dtype))
        return made

    def apply(self, weights: list[GroupedWeights], x: Tensor, bias: Tensor | None) -> Tensor:
        return merged_linear(x, weights, bias)


@dataclass(frozen=True, slots=True)
class GgufScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`. ``type_of``: a tensor's type by its name; ``tied``: the
    output layer has no weight of its own."""

    type_of: Callable[[str], str | None]
    tied: bool

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        modules = modules_of(spec)
        if self.tied and modules == ("lm_head",):
            return None
        kinds = tuple(self.type_of(f"{module}.weight") or "" for module in modules)
        # A rank's share must be whole blocks; layers for which it is not are dequantised while they load.
        whole = all(kind in BLOCK_TYPES and not spec.in_features % BLOCK_TYPES[kind].elements for kind in kinds)
        return GgufLinear(kinds) if whole else None


def _runs(kinds: Sequence[str], parts: Sequence[int]) -> list[tuple[str, slice]]:
    """Neighbouring parts of one type, as rows."""
    runs: list[tuple[str, slice]] = []
    for index, (kind, size) in enumerate(zip(kinds, parts, strict=True)):
        begin = sum(parts[:index])
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, slice(runs[-1][1].start, begin + size))
        else:
            runs.append((kind, slice(begin, begin + size)))
    return runs
