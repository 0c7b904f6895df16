"""Which method each layer of a bitsandbytes checkpoint gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo_quant.bitsandbytes.format import Bnb4Format
from octavo_quant.bitsandbytes.state import QuantState
from octavo_quant.codebook.linear import codebook_method
from octavo_quant.grouped import GroupedWeights, grouped_linear, pack_grouped
from octavo_quant.skips import one_answer
from octavo_quant.stored import Stored, floats, modules_of


@dataclass(frozen=True, slots=True)
class Bnb8Linear:
    """A :class:`octavo.contracts.linear.LinearMethod`: ``weight`` int8 [out, in], ``SCB`` float32 [out], the weight
    being their product over 127.

    Activations stay as they are. LLM.int8() (arXiv 2208.07339) quantises all but their outliers; this loses less.
    """

    stored: Stored

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        shape = (spec.out_features, spec.in_features)
        return {
            "weight": ParamSpec(shape=shape, dtype=torch.int8, out_axis=0, in_axis=1, transient=True),
            "SCB": ParamSpec(shape=shape[:1], dtype=torch.float32, out_axis=0, transient=True),
        }

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks or has in another shape."""
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows = (self.stored.shape(f"{module}.weight") or (part,))[0]
            shape = (rows, spec.full_in or spec.in_features)
            self.stored.need(f"{module}.weight", [shape], ["int8"], "an INT8 weight")
            self.stored.need(f"{module}.SCB", [(rows,)], floats(), "an INT8 weight")

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> GroupedWeights:
        codes = (raw["weight"].to(torch.int16) + 128).to(torch.uint8)
        scales = (raw["SCB"] / 127).unsqueeze(1)
        return pack_grouped(codes, scales, None, bits=8, group_size=-1, dtype=spec.dtype)

    def apply(self, weights: GroupedWeights, x: Tensor, bias: Tensor | None) -> Tensor:
        return grouped_linear(x, weights, bias)


@dataclass(frozen=True, slots=True)
class BitsAndBytesScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`. What a layer is, its tensors tell."""

    stored: Stored
    states: Mapping[str, QuantState]
    kernels: bool
    ignored_weights: tuple[str, ...] = field(
        default=(r"\.weight_format$", r"\.weight\.quant_state\.bitsandbytes__(nf4|fp4)$")
    )

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        kind: str | None = one_answer(spec, self._kind, "types")
        if kind == "int8":
            whole = Bnb8Linear(self.stored)
            whole.check(spec)
            return whole
        if kind is None:
            return None
        form = Bnb4Format(self.stored, self.states)
        form.check(spec)
        return codebook_method(form, spec, self.kernels)

    def _kind(self, module: str) -> str | None:
        if module in self.states:
            return self.states[module].kind
        stored = self.stored.dtype(f"{module}.weight")
        if stored == "uint8":
            raise self.stored.wrong(
                f"{module}.weight.quant_state.bitsandbytes__nf4", "is missing; the four-bit weight needs it"
            )
        return "int8" if stored == "int8" else None
