"""Loading plugins one by one, so that a broken one never hides the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pluggy

from octavo import hookspecs
from octavo.errors import PluginError
from octavo.plugins.checks import PluginFault, check_api, check_hooks, check_records, hook_names
from octavo.plugins.choosing import Wish
from octavo.plugins.report import Contribution, PluginStatus
from octavo.plugins.slots import SLOTS
from octavo.plugins.sources import Source, import_plugin
from octavo.records import Record

Caller = pluggy.HookCaller


@dataclass(slots=True)
class Registry:
    """Loaded plugins. ``contributions`` by slot key; ``callers`` by hook, one caller a plugin, in call order."""

    manager: pluggy.PluginManager
    sources: list[Source] = field(default_factory=list)
    statuses: list[PluginStatus] = field(default_factory=list)
    contributions: dict[str, tuple[Contribution[Any], ...]] = field(default_factory=dict)
    callers: dict[str, tuple[tuple[Source, Caller], ...]] = field(default_factory=dict)


def load(wishes: Iterable[Wish]) -> Registry:
    """Load what is wished for, in order.

    Raises :class:`PluginError` when a plugin that was asked for is broken, or two contribute one name to one
    slot. Others that are broken are left out, and their status says why.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager, contributions={slot.key: () for slot in SLOTS})
    for wish in wishes:
        registry.statuses.append(_load_one(registry, wish))
    _check_conflicts(registry)
    registry.callers = {name: _callers(registry, name) for name in hook_names(hookspecs)}
    return registry


def _load_one(registry: Registry, wish: Wish) -> PluginStatus:
    source = wish.source
    if wish.skip:
        return _status(source, "disabled", wish.skip)
    try:
        plugin = _register(registry, source)
        found = _collect(registry.manager, source, plugin)
    except (Exception, SystemExit) as error:
        registry.manager.unregister(name=source.name)
        cause = str(error) if isinstance(error, PluginFault) else f"{type(error).__name__}: {error}"
        if wish.asked:
            raise PluginError(f"plugin {source.label} can't be loaded: {cause}") from error
        return _status(source, "failed", cause)
    registry.sources.append(source)
    for key, contributions in found.items():
        registry.contributions[key] += contributions
    listed = tuple((key, c.record.name, c.record.summary) for key, items in found.items() for c in items)
    return _status(source, "loaded", hooks=_hooks(registry.manager, plugin), contributions=listed)


def _register(registry: Registry, source: Source) -> Any:
    plugin, places = import_plugin(source)
    check_api(places)
    for name, other in registry.manager.list_name_plugin():
        if other is plugin:
            raise PluginFault(f"it is loaded already, as {name!r}")
    check_hooks(registry.manager, plugin, hookspecs)
    registry.manager.register(plugin, name=source.name)
    return plugin


def _collect(
    manager: pluggy.PluginManager, source: Source, plugin: Any
) -> dict[str, tuple[Contribution[Record], ...]]:
    found: dict[str, tuple[Contribution[Record], ...]] = {}
    for slot in SLOTS:
        if slot.hook in _hooks(manager, plugin):
            answers = _only(manager, slot.hook, plugin)()
            found[slot.key] = tuple(
                Contribution(record, source.name, source.distribution, source.version, source.label)
                for record in check_records(slot, answers)
            )
    return found


def _hooks(manager: pluggy.PluginManager, plugin: Any) -> tuple[str, ...]:
    return tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))


def _only(manager: pluggy.PluginManager, hook: str, plugin: Any) -> Caller:
    others = [other for other in manager.get_plugins() if other is not plugin]
    return manager.subset_hook_caller(hook, others)


def _callers(registry: Registry, hook: str) -> tuple[tuple[Source, Caller], ...]:
    # pluggy lists implementations last-called first; a plugin may implement one hook twice.
    by_name = {source.name: source for source in registry.sources}
    order = {
        impl.plugin_name: impl.plugin for impl in reversed(getattr(registry.manager.hook, hook).get_hookimpls())
    }
    return tuple((by_name[name], _only(registry.manager, hook, plugin)) for name, plugin in order.items())


def _check_conflicts(registry: Registry) -> None:
    for slot in SLOTS:
        owners: dict[str, Contribution[Any]] = {}
        for contribution in registry.contributions[slot.key]:
            identity = slot.identity(contribution.record)
            other = owners.setdefault(identity, contribution)
            if other is not contribution:
                raise PluginError(
                    f"plugins {other.label} and {contribution.label} both contribute {slot.a_noun} named "
                    f"{identity!r}: switch one of them off with plugins.disable."
                )


def _status(
    source: Source,
    state: Any,
    reason: str = "",
    hooks: tuple[str, ...] = (),
    contributions: tuple[tuple[str, str, str], ...] = (),
) -> PluginStatus:
    return PluginStatus(
        source.name,
        source.value,
        source.distribution,
        source.version,
        source.kind,
        state,
        reason,
        hooks,
        contributions,
    )
