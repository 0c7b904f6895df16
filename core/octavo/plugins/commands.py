"""Subcommands of ``octavo`` that plugins add."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from octavo.errors import PluginError

if TYPE_CHECKING:
    import argparse

_NAME: Final = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: ``configure`` adds its arguments, ``run`` returns the exit code."""

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    plugin: str


class CommandRegistry:
    """The ``app`` of ``octavo_commands``, as one plugin sees it."""

    def __init__(self, plugin: str, taken: Collection[str], commands: dict[str, Command]) -> None:
        self._plugin = plugin
        self._taken = taken
        self._commands = commands

    def add(
        self,
        name: str,
        summary: str,
        configure: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], int],
    ) -> None:
        """Add ``octavo NAME``. Raises :class:`PluginError` when the name is taken or malformed."""
        if not _NAME.fullmatch(name):
            raise PluginError(
                f"plugin {self._plugin} adds a command named {name!r}; use lower-case letters and '-'."
            )
        owner = self._commands[name].plugin if name in self._commands else "Octavo itself"
        if name in self._commands or name in self._taken:
            raise PluginError(f"plugin {self._plugin} adds a command named {name!r}, which {owner} has already.")
        self._commands[name] = Command(name, summary, configure, run, self._plugin)
