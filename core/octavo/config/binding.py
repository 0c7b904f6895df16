"""Tying ``use`` and ``options`` of each section to the records that plugins contribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from octavo.config.launch import LaunchConfig
from octavo.config.problems import validate
from octavo.config.schema import NoOptions, Section
from octavo.errors import ConfigError, nearest
from octavo.plugins.host import PluginHost
from octavo.plugins.slots import BY_KEY, Slot
from octavo.records import Record

S = TypeVar("S", bound=Section)

SINGLE: Final = {
    "scheduler": "policy",
    "attention": "attention",
    "quantization": "quantization",
    "lora": "lora",
    "speculation": "proposer",
    "structured_outputs": "structured",
    "executor": "executor",
}
"""Sections that choose one record, and the slot they choose from."""
LISTS: Final = {"logits_processors": "logits_processors", "api": "api"}
"""Sections that list records."""
PREFERRING: Final = {"attention": "attention", "ops": "ops"}
"""Sections with a ``prefer`` list."""


def bind(config: LaunchConfig, host: PluginHost) -> LaunchConfig:
    """``config`` with each ``options`` replaced by the chosen record's own options, validated.

    With ``use: auto`` options must be empty: they belong to one record, and which one that will be depends on
    the machine and on what is installed. Raises :class:`ConfigError` with the path of what is wrong.
    """
    changed: dict[str, Any] = {
        "model": _bind(config.model, host, BY_KEY["loader"], "model", "loader", "loader_options")
    }
    for name, key in SINGLE.items():
        section = getattr(config, name)
        if section is not None:
            changed[name] = _bind(section, host, BY_KEY[key], name)
    for name, key in LISTS.items():
        items = getattr(config, name)
        changed[name] = [_bind(item, host, BY_KEY[key], f"{name}.{i}", listed=True) for i, item in enumerate(items)]
    _check_twice(changed["logits_processors"])
    _check_adapters(config)
    for name, key in PREFERRING.items():
        slot = BY_KEY[key]
        for index, preferred in enumerate(getattr(config, name).prefer):
            if preferred in _names(host, slot) or preferred in slot.reserved - {"auto"}:
                continue
            raise _unknown(host, slot, preferred, f"{name}.prefer.{index}")
    return config.model_copy(update=changed)


def _bind(
    section: S,
    host: PluginHost,
    slot: Slot,
    path: str,
    use_key: str = "use",
    options_key: str = "options",
    listed: bool = False,
) -> S:
    use, raw = getattr(section, use_key), getattr(section, options_key)
    if not listed and isinstance(use, str) and use in slot.reserved:
        if isinstance(raw, NoOptions):
            return section
        if raw:
            raise ConfigError(
                f"options belong to one {slot.noun}, and {use_key} is {use!r}: name it in {path}.{use_key} "
                f"({', '.join(_names(host, slot)) or 'there is none'}).",
                f"{path}.{options_key}",
            )
        return section
    record = _record(use, host, slot, f"{path}.{use_key}")
    return section.model_copy(update={options_key: _options(record, raw, f"{path}.{options_key}")})


def _record(use: Any, host: PluginHost, slot: Slot, path: str) -> Record:
    if isinstance(use, slot.record):
        return use
    if isinstance(use, Record):
        raise ConfigError(f"takes {slot.a_noun}, not the {type(use).__name__} {use.name!r}.", path)
    for contribution in host.contributions(slot.key):
        if contribution.record.name == use:
            record: Record = contribution.record
            return record
    raise _unknown(host, slot, use, path)


def _options(record: Record, raw: Mapping[str, Any] | Section, path: str) -> Section:
    if isinstance(raw, record.options):
        return raw
    if isinstance(raw, Section):
        wanted, got = record.options.__name__, type(raw).__name__
        raise ConfigError(f"{record.name!r} takes {wanted}, not {got}.", path)
    return validate(record.options, dict(raw), path)


def _unknown(host: PluginHost, slot: Slot, name: str, path: str) -> ConfigError:
    names = _names(host, slot)
    culprits = [status for status in host.report() if status.name == name and status.status != "loaded"]
    if culprits:
        status = culprits[0]
        return ConfigError(
            f"there is no {slot.noun} named {name!r}: plugin {status.label} is {status.status}, {status.reason}. "
            f"Available: {', '.join(names) or 'none'}.",
            path,
        )
    if not names:
        text = f"there is no {slot.noun} named {name!r}: no loaded plugin contributes any.{host.not_loaded()}"
        return ConfigError(text, path)
    return ConfigError(
        f"there is no {slot.noun} named {name!r}.{nearest(name, names)} "
        f"Available: {', '.join(names)}.{host.not_loaded()}",
        path,
    )


def _names(host: PluginHost, slot: Slot) -> list[str]:
    return list(dict.fromkeys(contribution.record.name for contribution in host.contributions(slot.key)))


def _check_adapters(config: LaunchConfig) -> None:
    seen = set()
    for index, adapter in enumerate(config.lora.adapters if config.lora else ()):
        if adapter.name in seen:
            raise ConfigError(f"{adapter.name!r} is listed twice.", f"lora.adapters.{index}.name")
        seen.add(adapter.name)


def _check_twice(sections: Sequence[Any]) -> None:
    seen: list[str] = []
    for index, section in enumerate(sections):
        name = section.use if isinstance(section.use, str) else section.use.name
        if name in seen:
            raise ConfigError(f"{name!r} is listed twice.", f"logits_processors.{index}.use")
        seen.append(name)
