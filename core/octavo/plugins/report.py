"""What is known of each plugin, and what travels of it to other processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import msgspec

from octavo.records import Record

R_co = TypeVar("R_co", bound=Record, covariant=True)

Travelling = Literal["builtin", "entry point", "module", "file"]
Kind = Literal["builtin", "entry point", "module", "file", "object"]
State = Literal["loaded", "disabled", "failed"]


def describe(name: str, kind: str, value: str, distribution: str, version: str) -> str:
    """How messages name a plugin: with its distribution, or where it has none, with where it came from."""
    if distribution:
        return f"{name!r} ({distribution} {version})"
    return f"{name!r} (given in Python)" if kind == "object" else f"{name!r} ({kind} {value})"


class LockedPlugin(msgspec.Struct, frozen=True):
    """One plugin as a child process finds it. ``value`` is ``pkg.mod``, ``pkg.mod:attr`` or an absolute path."""

    name: str
    value: str
    distribution: str
    version: str
    kind: Travelling


class PluginLock(msgspec.Struct, frozen=True):
    """The plugins of an engine, in the order they were loaded."""

    plugins: tuple[LockedPlugin, ...]


@dataclass(frozen=True, slots=True)
class Contribution(Generic[R_co]):
    """A record, and whose it is. ``label`` names the plugin in messages."""

    record: R_co
    plugin: str
    distribution: str
    version: str
    label: str


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One line of the report. ``contributions`` are (slot, record name, summary)."""

    name: str
    value: str
    distribution: str
    version: str
    kind: Kind
    status: State
    reason: str = ""
    hooks: tuple[str, ...] = ()
    contributions: tuple[tuple[str, str, str], ...] = field(default=())

    @property
    def label(self) -> str:
        """How messages name it."""
        return describe(self.name, self.kind, self.value, self.distribution, self.version)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of a decide hook, and the plugin that gave it."""

    name: str
    plugin: str
