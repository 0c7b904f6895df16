"""Overrides from the command line: ``--set cache.blocks=512``, ``--set api.0.options.port=9000``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from octavo.config.reading import parse
from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Override:
    """A value for one place. ``keys`` lead there; a number is an index where a list stands."""

    keys: tuple[str, ...]
    value: Any

    @property
    def path(self) -> str:
        """The dotted path."""
        return ".".join(self.keys)


def parse_overrides(texts: Iterable[str]) -> list[Override]:
    """``a.b=c`` each; what stands right of the first ``=`` is YAML, and nothing there means null."""
    overrides = []
    for text in texts:
        path, equals, value = text.partition("=")
        keys = tuple(key.strip() for key in path.split("."))
        if not equals or not all(keys):
            raise ConfigError(f"override {text!r} should look like 'section.key=value'.")
        overrides.append(Override(keys, parse(value, f"override {text!r}")))
    return overrides


def apply(data: dict[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of ``data`` with the overrides in it. Missing mappings are made; a list grows by one at most.

    ``data`` is copied along the way; other values, such as records, are shared.
    """
    for override in overrides:
        data = _put(data, override, 0)
    return data


def _put(node: Any, override: Override, depth: int) -> Any:
    if depth == len(override.keys):
        return override.value
    key = override.keys[depth]
    if isinstance(node, list):
        index = _index(node, override, depth)
        child = node[index] if index < len(node) else None
        return [*node[:index], _put(child, override, depth + 1), *node[index + 1 :]]
    if node is not None and not isinstance(node, dict):
        parent = ".".join(override.keys[:depth])
        raise ConfigError(f"can't be set: {parent} is {node!r}, not a mapping.", override.path)
    mapping: dict[str, Any] = node or {}
    return {**mapping, key: _put(mapping.get(key), override, depth + 1)}


def _index(items: list[Any], override: Override, depth: int) -> int:
    parent, key = ".".join(override.keys[:depth]), override.keys[depth]
    if not key.isdecimal() or int(key) > len(items):
        raise ConfigError(
            f"{parent} is a list of {len(items)}: write a number from 0 to {len(items)} for {key!r}.", override.path
        )
    return int(key)
