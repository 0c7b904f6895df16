"""Which method each layer of a torchao checkpoint gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo_quant.compressed_tensors.config import Numbers
from octavo_quant.compressed_tensors.packed import PackedIntegers
from octavo_quant.expanded import Expanded
from octavo_quant.fp8.format import Fp8Format
from octavo_quant.fp8.linear import Activations, Fp8Linear, fits
from octavo_quant.skips import one_answer
from octavo_quant.stored import Stored
from octavo_quant.w8a8.format import Int8Format
from octavo_quant.w8a8.linear import int8_method

_NAMES = {"_weight_qdata": "weight", "_weight_scale": "weight_scale", "_weight_zero_point": "weight_zero_point"}
_THEIRS = {ours: theirs for theirs, ours in _NAMES.items()}


class _Checked(Protocol):
    def check(self, spec: LinearSpec) -> None: ...


def renamed(stored: Stored, profile: Any) -> Stored:
    """The checkpoint with torchao's names for a layer's tensors put into the usual ones."""
    entries = {}
    for name, entry in stored.entries.items():
        module, _, last = name.rpartition(".")
        usual = f"{module}.{_NAMES[last]}" if last in _NAMES else name
        entries[usual] = replace(entry, name=usual)
    return Stored(profile, entries)


@dataclass(frozen=True, slots=True)
class Renamed:
    """A :class:`octavo.contracts.linear.LinearMethod` whose tensors have torchao's names in the files."""

    method: LinearMethod

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        return {_THEIRS.get(name, name): param for name, param in self.method.params(spec).items()}

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> Any:
        return self.method.finalize(spec, {_NAMES.get(name, name): tensor for name, tensor in raw.items()})

    def apply(self, weights: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.method.apply(weights, x, bias)


@dataclass(frozen=True, slots=True)
class TorchaoScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`. What a layer is, its tensors tell; that activations are
    quantised (``dynamic``), the configuration."""

    stored: Stored
    dynamic: bool
    kernels: bool
    fp8: bool
    ignored_weights: tuple[str, ...] = (r"\._weight_zero_point$",)

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        kind: tuple[str, int] | None = one_answer(spec, self._kind, "types")
        if kind is None:
            return None
        if kind[0] == "float8_e4m3fn":
            return Renamed(self._fp8(spec))
        return Renamed(self._integers(spec, spec.full_in // kind[1] if spec.full_in else 0, kind[1]))

    def _fp8(self, spec: LinearSpec) -> LinearMethod:
        form = Fp8Format(self.stored)
        form.check(spec)
        activations: Activations = "fp8" if self.dynamic and self.fp8 else "16-bit"
        return Fp8Linear(form, None, activations) if self.kernels and fits(spec, None) else Expanded(form)

    def _integers(self, spec: LinearSpec, group: int, groups: int) -> LinearMethod:
        if self.dynamic and groups == 1:
            form = Int8Format(self.stored)
            form.check(spec)
            return int8_method(form, spec, self.kernels, symmetric=True)
        size = spec.full_in or spec.in_features
        numbers = Numbers(
            bits=8,
            kind="int",
            strategy="group",
            symmetric=not self.stored.has(f"{spec.name}.weight_zero_point"),
            dynamic=False,
            group=group or size,
            block=None,
            actorder=None,
        )
        method = PackedIntegers(self.stored, numbers)
        method.check(spec)
        return method

    def _kind(self, module: str) -> tuple[str, int] | None:
        """The type of a layer's codes and the groups of its inputs; ``None`` where it is not quantised."""
        name = f"{module}.weight"
        dtype, scale = self.stored.dtype(name), self.stored.shape(f"{module}.weight_scale")
        if scale is None:
            return None
        if dtype == "float8_e4m3fn":
            return dtype, 1
        shape = self.stored.shape(name) or ()
        if dtype != "int8" or len(shape) != 2 or len(scale) != 2 or scale[0] != shape[0]:
            raise self.stored.wrong(
                name.replace(".weight", "._weight_qdata"),
                f"is {dtype} {list(shape)} with scales {list(scale)}; of torchao's layouts those with int8 or e4m3 "
                "codes [out, in] and scales [out, groups] are supported",
            )
        return dtype, scale[1]
