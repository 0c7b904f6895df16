"""The launch configuration of what is measured: preset and shape, then the launch file, then the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from octavo.errors import ConfigError
from octavo_bench.presets import Preset
from octavo_bench.shapes import written


@contextlib.contextmanager
def launch_sections(
    *,
    config: str | None,
    model: str | None,
    shape: str | None,
    preset: Preset | None,
    prefix_cache: str | None,
    overrides: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A launch configuration as plain data; folders that it names are there until the context ends.

    A preset's shape gives way to ``model``. Raises :class:`ConfigError`.
    """
    read = _read(config) if config is not None else {}
    chosen = shape or (preset.shape if preset is not None and model is None else None)
    elsewhere = _path_of(read) or any(text.partition("=")[0].strip() == "model.path" for text in overrides)
    if chosen is not None and (elsewhere or model is not None):
        raise ConfigError("a shape or workload brings a model of its own; only --model may replace a workload's.")
    with contextlib.ExitStack() as stack:
        sections: dict[str, Any] = {} if chosen is None else stack.enter_context(written(chosen))
        for more in (preset.sections if preset is not None else {}, read):
            sections = merge(sections, more)
        if model is not None:
            sections = assign(sections, ("model", "path"), model)
        if prefix_cache is not None:
            sections = assign(sections, ("cache", "prefix_caching"), prefix_cache == "on")
        yield override(sections, overrides)


def override(sections: Mapping[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """``sections`` with ``a.b=c`` texts in it, whose values are YAML."""
    result = dict(sections)
    for text in texts:
        path, equals, value = text.partition("=")
        keys = tuple(key.strip() for key in path.split("."))
        if not equals or not all(keys):
            raise ConfigError(f"--set {text!r} should look like 'section.key=value'.")
        try:
            result = assign(result, keys, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: the value is not valid YAML: {error}.") from None
    return result


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Both, ``high`` over ``low``, key by key where both hold mappings."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return result


def assign(node: Any, keys: Sequence[str], value: Any) -> Any:
    """A copy of ``node`` with ``value`` where ``keys`` lead; ``attention: torch`` is short for a ``use``."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdecimal() or int(key) > len(node):
            raise ConfigError(f"{key!r} should be a number from 0 to {len(node)}: a list stands there.")
        child = node[int(key)] if int(key) < len(node) else None
        return [*node[: int(key)], assign(child, rest, value), *node[int(key) + 1 :]]
    if node is None or isinstance(node, str):
        node = {} if node is None else {"use": node}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key!r} can't be set: {node!r} stands there.")
    return {**node, key: assign(node.get(key), rest, value)}


def _read(path: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"launch file {path!r} can't be read: {error}.") from None
    if not isinstance(data, dict | None):
        raise ConfigError(f"launch file {path!r} should hold sections such as 'model:'.")
    return data or {}


def _path_of(sections: Mapping[str, Any]) -> str | None:
    model = sections.get("model")
    return model.get("path") if isinstance(model, Mapping) else None
