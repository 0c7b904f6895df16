"""What is checked of a plugin before it is trusted with a slot: its API version, its hooks, its records."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pluggy

from octavo.config.schema import Section
from octavo.errors import nearest
from octavo.plugins.slots import Slot
from octavo.records import HOOK_API, OpRecord, Record

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class PluginFault(Exception):
    """What is wrong with one plugin, in words for its author."""


def check_api(places: Sequence[Any]) -> None:
    """Refuse a plugin that states an ``OCTAVO_API`` which this Octavo does not speak."""
    for place in places:
        stated = getattr(place, "OCTAVO_API", None)
        if stated is None:
            continue
        if not (isinstance(stated, tuple) and len(stated) == 2 and all(type(part) is int for part in stated)):
            raise PluginFault(f"OCTAVO_API must be a pair such as {HOOK_API}, not {stated!r}")
        if stated[0] != HOOK_API[0] or stated[1] > HOOK_API[1]:
            theirs, ours = (f"{major}.{minor}" for major, minor in (stated, HOOK_API))
            raise PluginFault(
                f"it is written for hook API {theirs}, and this Octavo speaks {ours}: install a version of it "
                f"for {ours}, or an Octavo that speaks {theirs}"
            )


def check_hooks(manager: pluggy.PluginManager, plugin: Any, specs: types.ModuleType) -> None:
    """Refuse classes, unknown hooks, wrong arguments, wrappers, and plugins without any hook."""
    if inspect.isclass(plugin):
        raise PluginFault("it is a class; an entry point must name a module or an instance")
    try:
        hash(plugin)
    except TypeError:
        raise PluginFault("it can't be hashed; a dataclass needs eq=False to be a plugin") from None
    known = hook_names(specs)
    marked = 0
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            _check_unmarked(plugin, name, known)
            continue
        marked += 1
        hook = options.get("specname") or name
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginFault(
                f"{name} is a wrapper; plugins contribute and decide, they don't change other answers"
            )
        if hook in known:
            _check_arguments(hook, getattr(plugin, name), getattr(specs, hook))
        elif not options.get("optionalhook"):
            raise PluginFault(f"there is no hook {hook!r}.{nearest(hook, known)}")
    if not marked:
        raise PluginFault("it implements no hook; mark its functions with `@octavo.hookimpl`")


def hook_names(specs: types.ModuleType) -> list[str]:
    """The hooks that a module of specifications declares."""
    return [name for name, value in vars(specs).items() if name.startswith("octavo_") and inspect.isfunction(value)]


def _check_unmarked(plugin: Any, name: str, known: Iterable[str]) -> None:
    if name in known and inspect.isroutine(inspect.getattr_static(plugin, name, None)):
        raise PluginFault(f"{name} is not marked with `@octavo.hookimpl`, so it would never be called")


def _check_arguments(hook: str, implementation: Any, spec: Any) -> None:
    allowed = list(inspect.signature(spec).parameters)
    for name, parameter in inspect.signature(implementation).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise PluginFault(f"{hook} takes plain arguments only, not {str(parameter)!r}")
        if name not in allowed and parameter.default is parameter.empty:
            raise PluginFault(
                f"{hook} has no argument {name!r}.{nearest(name, allowed)} "
                f"It has {', '.join(allowed) or 'none'}; any subset may be taken"
            )
        if name in allowed and parameter.default is not parameter.empty:
            raise PluginFault(f"{hook}: argument {name!r} must have no default, or it never receives a value")


def check_records(slot: Slot, answers: Iterable[Any]) -> list[Record]:
    """All records that one plugin yields for a slot, each found sound, no name twice."""
    found: dict[str, Record] = {}
    for answer in answers:
        if isinstance(answer, (str, bytes, Record)) or not isinstance(answer, Iterable):
            raise PluginFault(f"{slot.hook} must yield {slot.record.__name__}s, not return {answer!r}")
        for record in answer:
            _check_record(slot, record)
            identity = slot.identity(record)
            if identity in found:
                raise PluginFault(f"{slot.hook} yields two records named {identity!r}")
            found[identity] = record
    return list(found.values())


def _check_record(slot: Slot, record: Any) -> None:
    if not isinstance(record, slot.record):
        raise PluginFault(f"{slot.hook} must yield {slot.record.__name__}s, not {type(record).__name__}")
    name = record.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in slot.reserved:
        raise PluginFault(
            f"{slot.hook} yields a record named {name!r}; a name starts with a letter or digit, continues with "
            f"those or '. _ + -', and is not {' or '.join(sorted(slot.reserved))}"
        )
    if not (isinstance(record.options, type) and issubclass(record.options, Section)):
        raise PluginFault(f"the options of {slot.noun} {name!r} must be a subclass of octavo.config.schema.Section")
    for attribute in ("build", "supports"):
        if not callable(getattr(record, attribute)):
            raise PluginFault(f"{attribute} of {slot.noun} {name!r} must be a function")
    if isinstance(record, OpRecord) and not (isinstance(record.op, str) and record.op):
        raise PluginFault(f"operation record {name!r} must say which op it implements")
