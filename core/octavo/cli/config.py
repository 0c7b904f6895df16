"""``octavo config``: the JSON schema of launch files, a file with its defaults, or whether it is right."""

from __future__ import annotations

import argparse

from octavo.cli.arguments import add_config, launch_of, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``schema``, ``show`` and ``check``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="schema|show|check")
    for name, summary in (
        ("schema", "Print the JSON schema for the plugins that are installed and that CONFIG asks for."),
        ("show", "Print the launch file with overrides and defaults filled in, as YAML. Secrets are masked."),
        ("check", "Check the launch file, without looking at the model or the machine."),
    ):
        add_config(actions.add_parser(name, help=summary, description=summary))


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action == "schema":
        return _schema(args)
    config, _ = launch_of(args)
    if args.action == "check":
        print(f"{args.config or 'The default configuration'}: OK")
        return 0
    import yaml

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0


def _schema(args: argparse.Namespace) -> int:
    from octavo.config.compose import load_plugins
    from octavo.config.json_schema import launch_schema

    _, host, _ = load_plugins(args.config, args.overrides)
    print_json(launch_schema(host))
    return 0
