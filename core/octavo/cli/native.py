"""``octavo native``: the C++ that plugins bring, and compiling it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from octavo.cli.arguments import add_overrides, print_json

if TYPE_CHECKING:
    from octavo.plugins.host import PluginHost


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``list`` and ``build``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|build")
    listing = actions.add_parser("list", help="Say what is compiled.", description="List the native libraries.")
    listing.add_argument("--json", action="store_true", help="print as JSON")
    build = actions.add_parser("build", help="Compile all.", description="Compile what is not compiled yet.")
    for action in (listing, build):
        action.add_argument("--config", metavar="CONFIG", help="launch file whose `plugins` section applies")
        add_overrides(action)


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    from octavo.plugins.host import PluginHost

    if args.config or args.overrides:
        from octavo.config.compose import load_plugins

        host = load_plugins(args.config, args.overrides)[1]
    else:
        host = PluginHost.load()
    return _build(host) if args.action == "build" else _list(host, args.json)


def _list(host: PluginHost, as_json: bool) -> int:
    found = [
        {
            "name": item.record.name,
            "plugin": item.plugin,
            "summary": item.record.summary,
            "missing": item.record.missing(),
        }
        for item in host.native_libraries()
    ]
    if as_json:
        print_json(found)
        return 0
    for entry in found:
        print(f"{entry['name']} (plugin {entry['plugin']}): {entry['summary']}")
        print(f"  {entry['missing'] or 'compiled, and used where it works'}")
    if not found:
        print("No loaded plugin brings a native library.")
    return 0


def _build(host: PluginHost) -> int:
    """An OctavoError of the first that fails goes to the user; those before it stay compiled."""
    for item in host.native_libraries():
        start = time.perf_counter()
        path = item.record.build()
        print(f"{item.record.name}: {path} ({time.perf_counter() - start:.1f} s)")
    return 0
