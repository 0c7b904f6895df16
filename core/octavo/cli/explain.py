"""``octavo explain``: what a launch file chooses, and why."""

from __future__ import annotations

import argparse

from octavo.cli.arguments import add_config, launch_of, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the launch file and ``--json``."""
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Resolve the configuration and print each slot, each candidate and the memory plan."""
    from octavo.assemble import resolve
    from octavo.explain import explain

    explanation = explain(resolve(*launch_of(args)))
    if args.json:
        print_json(explanation.to_json())
    else:
        print(explanation.text())
    return 0
