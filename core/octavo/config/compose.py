"""From a YAML file (or a mapping) to a :class:`LaunchConfig`, in two passes.

The first pass reads only ``plugins`` and loads them; the second reads everything against what they contribute.
Python callers may write a record where YAML takes a name: ``{"attention": MyRecord}`` is short for
``{"attention": {"use": MyRecord}}``, as ``attention: torch`` is in YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from octavo.config.binding import LISTS, SINGLE, bind
from octavo.config.launch import LaunchConfig
from octavo.config.overrides import Override, apply, parse_overrides
from octavo.config.problems import validate
from octavo.config.reading import read_file
from octavo.config.schema import PluginsSection
from octavo.errors import ConfigError
from octavo.plugins.host import PluginHost
from octavo.records import Record

DEFAULT_API: Final = "openai"

Source = str | Path | Mapping[str, Any] | None


def load_launch(
    source: Source = None, overrides: Sequence[str] = (), objects: Sequence[object] = ()
) -> tuple[LaunchConfig, PluginHost]:
    """The configuration and the plugins it asks for.

    ``source`` is a YAML file, a mapping, or ``None`` for all defaults; ``overrides`` are ``a.b=c`` texts;
    ``objects`` are plugins given in Python. Raises :class:`ConfigError` and :class:`PluginError`.
    """
    data, host, rest = load_plugins(source, overrides, objects)
    return compose(data, host, rest), host


def load_plugins(
    source: Source = None, overrides: Sequence[str] = (), objects: Sequence[object] = ()
) -> tuple[dict[str, Any], PluginHost, list[Override]]:
    """The first pass: the raw mapping, the loaded plugins, and the overrides that don't concern plugins."""
    data = _plain(source) if isinstance(source, Mapping) else read_file(source) if source is not None else {}
    parsed = parse_overrides(overrides)
    data = apply(data, [item for item in parsed if item.keys[0] == "plugins"])
    section = validate(PluginsSection, _or_empty(data.get("plugins")), "plugins", strict=True)
    host = PluginHost.load(section, objects)
    return data, host, [item for item in parsed if item.keys[0] != "plugins"]


def compose(data: Mapping[str, Any], host: PluginHost, overrides: Sequence[Override] = ()) -> LaunchConfig:
    """The second pass: the whole configuration against the loaded plugins. Also for child processes, with the
    answer of :meth:`LaunchConfig.to_mapping`."""
    whole = expand(data)
    if "api" not in whole:
        served = [item.record.name for item in host.api_surfaces()]
        whole["api"] = [{"use": DEFAULT_API}] if DEFAULT_API in served else []
    for override in overrides:
        whole = expand(apply(whole, [override]))
    return bind(validate(LaunchConfig, whole, strict=True), host)


def expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with short forms written out, empty sections dropped, and tuples as lists."""
    whole = {str(key): _plain(value) for key, value in data.items() if value is not None}
    for name in SINGLE:
        if name in whole:
            whole[name] = _use(whole[name])
    for name in LISTS:
        items = whole.get(name)
        if isinstance(items, list):
            whole[name] = [_use(item) for item in items]
        elif isinstance(items, (str, Record)):
            raise ConfigError(f"should be a list, such as [{_name(items)}].", name)
    return whole


def _use(value: Any) -> Any:
    return {"use": value} if isinstance(value, (str, Record)) else value


def _name(value: str | Record) -> str:
    return value if isinstance(value, str) else value.name


def _plain(value: Any) -> Any:
    """The same with dicts for mappings and lists for tuples; records and sections stay what they are."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _or_empty(value: Any) -> Any:
    return {} if value is None else value
