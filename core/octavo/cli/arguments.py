"""Arguments that several subcommands share: the launch file and its overrides."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.config.launch import LaunchConfig
    from octavo.plugins.host import PluginHost


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``[CONFIG] [--set KEY=VALUE]...``."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="launch file (YAML); default: all defaults")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``[--set KEY=VALUE]...``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value, such as cache.blocks=512 or api.0.options.port=9000 (may be repeated)",
    )


def launch_of(args: argparse.Namespace) -> tuple[LaunchConfig, PluginHost]:
    """The configuration and the plugins that the arguments of :func:`add_config` ask for."""
    from octavo.config.compose import load_launch

    return load_launch(args.config, args.overrides)


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
