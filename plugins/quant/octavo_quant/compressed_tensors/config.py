"""compressed-tensors' quantization_config: groups of layers, and how each is quantised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import CheckpointError

_STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")


@dataclass(frozen=True, slots=True)
class Numbers:
    """How weights or activations are quantised. ``group`` inputs share a scale; ``block`` is [rows, columns]."""

    bits: int
    kind: str  # "int" or "float"
    strategy: str
    symmetric: bool
    dynamic: bool
    group: int | None
    block: tuple[int, int] | None
    actorder: str | None

    def __str__(self) -> str:
        how = "dynamic " if self.dynamic else ""
        return f"{how}{self.kind}{self.bits} a {self.strategy}"


@dataclass(frozen=True, slots=True)
class Group:
    """``targets`` are module names, ``re:`` patterns or class names."""

    name: str
    targets: tuple[str, ...]
    weights: Numbers | None
    inputs: Numbers | None
    format: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole configuration."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]

    def group_of(self, module: str) -> Group | None:
        """The group of a linear layer, or ``None`` where it is not quantised. A name goes before a class."""
        if any(_named(pattern, module) for pattern in self.ignore):
            return None
        for group in self.groups:
            if any(_named(target, module) for target in group.targets):
                return group
        return next((group for group in self.groups if "Linear" in group.targets), None)


def read_layout(config: Mapping[str, Any], where: str) -> Layout:
    """Check and read it; raises :class:`CheckpointError` naming the key that is wrong or asks too much."""
    reader = _Reader(f"{where}: quantization_config")
    reader.refuse_transforms(config)
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise reader.error("config_groups", "must be an object with at least one group")
    ignore = config.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(each, str) for each in ignore):
        raise reader.error("ignore", "must be a list of names")
    shared = str(config.get("format") or "")
    return Layout(tuple(reader.group(name, value, shared) for name, value in groups.items()), tuple(ignore))


class _Reader:
    def __init__(self, where: str) -> None:
        self._where = where

    def error(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}.{key} {what}.")

    def refuse_transforms(self, config: Mapping[str, Any]) -> None:
        sparsity = config.get("sparsity_config") or {}
        form = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else sparsity
        if form not in ("dense", None):
            raise self.error("sparsity_config", f"has format {form!r}; only dense weights are supported")
        if config.get("transform_config"):
            raise self.error("transform_config", "asks for transforms of activations, which are not supported")

    def group(self, name: str, value: Any, shared: str) -> Group:
        key = f"config_groups.{name}"
        if not isinstance(value, Mapping):
            raise self.error(key, "must be an object")
        targets = value.get("targets")
        if not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
            raise self.error(f"{key}.targets", "must be a list of names")
        return Group(
            name=name,
            targets=tuple(targets),
            weights=self._numbers(value.get("weights"), f"{key}.weights"),
            inputs=self._numbers(value.get("input_activations"), f"{key}.input_activations"),
            format=str(value.get("format") or shared),
        )

    def _numbers(self, value: Any, key: str) -> Numbers | None:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, "must be an object")
        bits, kind = value.get("num_bits"), value.get("type", "int")
        strategy = value.get("strategy") or ("group" if value.get("group_size") else "tensor")
        if not isinstance(bits, int) or kind not in ("int", "float") or strategy not in _STRATEGIES:
            raise self.error(key, f"is not understood: num_bits {bits!r}, type {kind!r}, strategy {strategy!r}")
        group, block = value.get("group_size"), value.get("block_structure")
        if group is not None and (not isinstance(group, int) or group == 0 or group < -1):
            raise self.error(f"{key}.group_size", f"must be a positive number or -1, not {group!r}")
        if block is not None and (not isinstance(block, list) or len(block) != 2):
            raise self.error(f"{key}.block_structure", f"must be two numbers, not {block!r}")
        return Numbers(
            bits=bits,
            kind=kind,
            strategy=strategy,
            symmetric=bool(value.get("symmetric", True)),
            dynamic=bool(value.get("dynamic", False)),
            group=group,
            block=(int(block[0]), int(block[1])) if block else None,
            actorder=value.get("actorder"),
        )


def _named(pattern: str, module: str) -> bool:
    return re.match(pattern[3:], module) is not None if pattern.startswith("re:") else pattern == module
