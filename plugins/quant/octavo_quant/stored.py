"""What a checkpoint stores, asked before any layer is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from octavo.checkpoint import HeaderEntry, read_tensors, stored_tensors
from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo.errors import CheckpointError
from octavo.records import ModelProfile

_HALF = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_DTYPES = {
    **_HALF,
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
}


class Stored:
    """The tensors of a checkpoint by name. ``known`` is false where there are none to look at (dummy weights)."""

    def __init__(self, profile: ModelProfile, entries: Mapping[str, HeaderEntry] | None = None) -> None:
        self.path = profile.path
        self.entries = stored_tensors(profile) if entries is None else entries
        self.known = bool(self.entries)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The stored shape, or ``None`` where the tensor is not there."""
        entry = self.entries.get(name)
        return entry.shape if entry else None

    def number(self, name: str) -> ParamSpec:
        """One float32 number for each checkpoint layer of a merged one, in the shape that ``name`` has."""
        shape = self.shape(name)
        return ParamSpec(shape=(1,) if shape is None else shape, dtype=torch.float32, per_part=True)

    def dtype(self, name: str) -> str | None:
        """The name of the stored type in torch, or ``None``."""
        entry = self.entries.get(name)
        return _DTYPES.get(entry.dtype, entry.dtype) if entry else None

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return name in self.entries

    def first(self, names: Iterable[str]) -> str | None:
        """The first of ``names`` that is there."""
        return next((name for name in names if name in self.entries), None)

    def numbers(self, names: Iterable[str]) -> dict[str, float]:
        """One number each, of those tensors that are there."""
        found = {name: self.entries[name] for name in names if name in self.entries}
        values: dict[str, float] = {}
        for name, tensor in read_tensors(found).items():
            if tensor.numel() != 1:
                raise self.wrong(name, f"has shape {list(tensor.shape)}, where one number is expected")
            values[name] = float(tensor.float())
        return values

    def wrong(self, name: str, what: str) -> CheckpointError:
        """The error for one tensor."""
        return CheckpointError(f"{self.path}: tensor {name} {what}.")

    def need(self, name: str, shapes: Iterable[tuple[int, ...]], dtypes: Iterable[str], why: str) -> None:
        """Refuse a tensor that is missing, or of other shapes or types than these."""
        if not self.known:
            return
        shape, dtype = self.shape(name), self.dtype(name)
        if shape is None:
            raise self.wrong(name, f"is missing; {why}")
        if shape not in (wanted := list(shapes)):
            options = " or ".join(str(list(each)) for each in wanted)
            raise self.wrong(name, f"has shape {list(shape)}; {why} needs {options}")
        if dtype not in (types := list(dtypes)):
            raise self.wrong(name, f"is stored as {dtype}; {why} needs {' or '.join(types)}")

    def full_shape(self, spec: LinearSpec, module: str, tensor: str = "weight") -> tuple[int, int]:
        """[out, in] of one unpacked checkpoint layer, before it is divided among ranks."""
        part = spec.out_parts[_modules(spec).index(module)]
        shape = self.shape(f"{module}.{tensor}")
        if shape is None or len(shape) != 2:
            return part, spec.full_in or spec.in_features
        return shape[0], shape[1]


def modules_of(spec: LinearSpec) -> tuple[str, ...]:
    """The checkpoint layers merged into one."""
    return _modules(spec)


def _modules(spec: LinearSpec) -> tuple[str, ...]:
    return spec.modules or (spec.name,)


def floats() -> tuple[str, ...]:
    """Types that are converted on load."""
    return tuple(_HALF.values())
