"""``octavo plugins``: which plugins there are, in what state, and what they contribute."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli.arguments import add_overrides, print_json
from octavo.errors import PluginError, nearest

if TYPE_CHECKING:
    from octavo.plugins.host import PluginHost
    from octavo.plugins.report import PluginStatus


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``list`` and ``show``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show")
    listing = actions.add_parser("list", help="List all plugins.", description="List all plugins.")
    show = actions.add_parser("show", help="Show one plugin.", description="Show one plugin and its options.")
    show.add_argument("name", metavar="NAME", help="name of a plugin, as `octavo plugins list` prints it")
    for action in (listing, show):
        action.add_argument("--config", metavar="CONFIG", help="launch file whose `plugins` section applies")
        action.add_argument("--json", action="store_true", help="print as JSON")
        add_overrides(action)


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    from octavo.plugins.host import PluginHost

    if args.config or args.overrides:
        from octavo.config.compose import load_plugins

        host = load_plugins(args.config, args.overrides)[1]
    else:
        host = PluginHost.load()
    return _list(host, args.json) if args.action == "list" else _show(host, args.name, args.json)


def _list(host: PluginHost, as_json: bool) -> int:
    statuses = host.report()
    if as_json:
        print_json([_plain(host, status, options=False) for status in statuses])
        return 0
    rows = [("NAME", "STATUS", "DISTRIBUTION", "CONTRIBUTES")]
    rows += [(item.name, item.status, _origin(item), item.reason or _summary(item)) for item in statuses]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
    print("\nWhether a contribution works with a model on this machine: octavo explain CONFIG")
    return 0


def _show(host: PluginHost, name: str, as_json: bool) -> int:
    statuses = {status.name: status for status in host.report()}
    if name not in statuses:
        raise PluginError(
            f"there is no plugin {name!r}.{nearest(name, statuses)} There are: {', '.join(statuses)}."
        )
    plain = _plain(host, statuses[name], options=True)
    if as_json:
        print_json(plain)
        return 0
    for key in ("name", "status", "reason", "distribution", "version", "kind", "value"):
        if plain[key]:
            print(f"{key:13} {plain[key]}")
    print(f"{'hooks':13} {', '.join(plain['hooks']) or 'none'}")
    for item in plain["contributes"]:
        print(f"\n{item['slot']}: {item['name']}\n  {item['summary']}\n  works here: {item['supports']}")
        print("\n".join(_option_lines(item["options"])))
    return 0


def _plain(host: PluginHost, status: PluginStatus, *, options: bool) -> dict[str, Any]:
    return {
        "name": status.name,
        "status": status.status,
        "reason": status.reason,
        "distribution": status.distribution,
        "version": status.version,
        "kind": status.kind,
        "value": status.value,
        "hooks": list(status.hooks),
        "contributes": _contributions(host, status, options),
    }


def _contributions(host: PluginHost, status: PluginStatus, options: bool) -> list[dict[str, Any]]:
    from octavo.plugins.slots import SLOTS
    from octavo.records import always

    found: list[dict[str, Any]] = []
    for slot in SLOTS:
        for contribution in host.contributions(slot.key):
            record = contribution.record
            if contribution.plugin != status.name:
                continue
            anywhere = "yes, anywhere" if record.supports is always else "not evaluated: depends on the model"
            item = {"slot": slot.key, "name": slot.identity(record), "summary": record.summary}
            item |= {"supports": anywhere, "automatic": record.automatic, "rank": record.rank}
            found.append(item | ({"options": record.options.model_json_schema()} if options else {}))
    return found


def _origin(status: PluginStatus) -> str:
    return f"{status.distribution} {status.version}" if status.distribution else status.kind


def _summary(status: PluginStatus) -> str:
    by_slot: dict[str, list[str]] = {}
    for slot, name, _ in status.contributions:
        by_slot.setdefault(slot, []).append(name)
    parts = [f"{slot}: {', '.join(names)}" for slot, names in by_slot.items()]
    if "octavo_commands" in status.hooks:
        parts.append("commands")
    return "; ".join(parts) or ", ".join(status.hooks)


def _option_lines(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    lines = []
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else f"default {field.get('default')!r}"
        lines.append(f"  {name} ({_kind(field)}, {default}): {field.get('description', 'no description')}")
    return lines or ["  no options"]


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(map(repr, field["enum"]))
    if "anyOf" in field:
        return " or ".join(_kind(member) for member in field["anyOf"])
    return str(field.get("type") or field.get("$ref", "any").rpartition("/")[2])
