"""``octavo``: finds the subcommand, runs it, and turns errors into one line.

``octavo --help`` shows the core's commands without loading any plugin; ``octavo help --all`` loads the plugins
and shows theirs as well. A command that is not the core's is looked for among the plugins.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from octavo.errors import OctavoError, nearest

if TYPE_CHECKING:
    from octavo.plugins.commands import Command

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("octavo.cli.serve", "Serve a model over HTTP."),
    "chat": ("octavo.cli.chat", "Talk with a model in the terminal."),
    "plugins": ("octavo.cli.plugins", "List the plugins, or show one of them."),
    "config": ("octavo.cli.config", "Check or show a launch file, or print its JSON schema."),
    "explain": ("octavo.cli.explain", "Say what a launch file chooses, and why, without loading weights."),
    "native": ("octavo.cli.native", "Compile the C++ that plugins bring, or say what is there."),
    "version": ("octavo.cli.version", "Print versions."),
}
USER_ERROR: Final = 2
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class _Line:
    """The command line, split at the subcommand."""

    help: bool
    all: bool
    traceback: bool
    command: str
    rest: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    line = _split(sys.argv[1:] if argv is None else list(argv))
    try:
        if line.help or not line.command:
            print(_help(line.all), end="")
            return 0 if line.help else USER_ERROR
        code = _run(line.command, line.rest)
        sys.stdout.flush()  # here, where a reader that has gone is expected
        return code
    except OctavoError as error:
        if line.traceback:
            raise
        print(f"octavo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as in `octavo plugins list | head`; keep the interpreter from writing once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _split(argv: list[str]) -> _Line:
    flags = dict.fromkeys(("-h", "--help", "help", "--all", "--traceback", "-V", "--version"), False)
    for place, word in enumerate(argv):
        if word not in flags:
            return _line(flags, word, argv[place + 1 :])
        flags[word] = True
    return _line(flags, "version" if flags["-V"] or flags["--version"] else "", [])


def _line(flags: dict[str, bool], command: str, rest: list[str]) -> _Line:
    return _Line(
        flags["-h"] or flags["--help"] or flags["help"], flags["--all"], flags["--traceback"], command, rest
    )


def _run(name: str, rest: list[str]) -> int:
    if name in COMMANDS:
        module_name, summary = COMMANDS[name]
        module = importlib.import_module(module_name)
        return _call(name, summary, module.configure, module.run, rest)
    if name.startswith("-"):
        raise OctavoError(f"there is no option {name!r}; `octavo --help` lists them.")
    commands = _plugin_commands()
    if name not in commands:
        hint = nearest(name, [*COMMANDS, *commands])
        raise OctavoError(f"there is no command {name!r}.{hint} `octavo help --all` lists all.")
    command = commands[name]
    return _call(name, command.summary, command.configure, command.run, rest)


def _call(
    name: str,
    summary: str,
    configure: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    rest: list[str],
) -> int:
    parser = argparse.ArgumentParser(prog=f"octavo {name}", description=summary)
    configure(parser)
    return run(parser.parse_args(rest))


def _plugin_commands() -> dict[str, Command]:
    from octavo.plugins.host import PluginHost

    return PluginHost.load().commands(taken=COMMANDS)


def _help(everything: bool) -> str:
    sections = [
        "Octavo: an LLM inference and serving engine whose every subsystem is a plugin.",
        "usage: octavo [--traceback] COMMAND ...",
        _table("Commands", {name: summary for name, (_, summary) in COMMANDS.items()}),
    ]
    if everything:
        added = {name: f"{item.summary} (plugin {item.plugin})" for name, item in _plugin_commands().items()}
        sections.append(_table("Commands of plugins", added) if added else "No plugin adds a command.")
    sections.append(
        _table(
            "Options",
            {
                "-h, --help, help": "Show this; after a command, show its arguments.",
                "help --all": "Show the commands that plugins add, too.",
                "-V, --version": "Print versions.",
                "--traceback": "Show where an error was raised.",
            },
        )
    )
    return "\n\n".join(sections) + "\n"


def _table(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join([f"{title}:", *(f"  {name:{width}}  {text}" for name, text in rows.items())])


if __name__ == "__main__":
    sys.exit(main())
