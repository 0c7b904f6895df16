"""Arguments that the offline measurements share, and how a preset fills in those that are not given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError, OctavoError
from octavo_bench.presets import PRESETS, Preset, names_of
from octavo_bench.shapes import SHAPES
from octavo_bench.sizes import Lengths, parse_lengths


@dataclass(frozen=True, slots=True)
class Settled:
    """What is to be measured: ``values`` by argument name, the ``preset`` they come from, and the ``label`` of
    the workload in records, which says what differs from the preset."""

    values: Mapping[str, Any]
    preset: Preset | None
    label: str

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def add_engine(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what says which engine is measured, how often, and where the figures go."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="launch file (YAML); default: all defaults")
    parser.add_argument("--model", metavar="PATH", help="same as --set model.path=PATH")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value, such as scheduler.max_sequences=512 (may be repeated)",
    )
    parser.add_argument(
        "--workload",
        choices=names_of(command),
        help="a workload with all its settings, shape included; options given beside it come first",
    )
    parser.add_argument("--repeats", type=positive, metavar="N", help="measurements (default: 3)")
    parser.add_argument("--seed", type=int, metavar="N", help="of lengths and token ids (default: 0)")
    add_output(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add temperature and warm-up."""
    parser.add_argument("--temperature", type=float, metavar="T", help="of sampling; 0 (the default) is greedy")
    parser.add_argument(
        "--warmup", type=share, metavar="SHARE", help="share of the requests sent once before (default: 1, all)"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add where the figures go, and how they are called there."""
    parser.add_argument("--json", metavar="FILE", help="append one line a figure to this file")
    parser.add_argument("--label", metavar="NAME", help="name of the workload in FILE")
    parser.add_argument("--commit", metavar="TEXT", help="commit in FILE, where Octavo runs outside its checkout")


def settle(
    args: argparse.Namespace, defaults: Mapping[str, Any], plain: Callable[[Mapping[str, Any]], str]
) -> Settled:
    """Options given, else the preset's, else ``defaults``. ``plain`` makes the label where there is no preset."""
    named = getattr(args, "workload", None)
    preset = PRESETS[named] if named else None
    below = preset.options if preset is not None else {}
    values = dict(defaults)
    values.update(below)
    given = {name: value for name in values if (value := getattr(args, name, None)) is not None}
    values.update(given)
    shrink = getattr(args, "scale", None)
    if shrink is not None:
        need(values["requests"] is not None, "--scale needs a number to shrink: give --requests as well.")
        values["requests"] = max(1, round(values["requests"] * shrink))
    if args.label:
        return Settled(values, preset, args.label)
    if preset is None:
        return Settled(values, preset, plain(values))
    changed = [name for name, value in below.items() if value not in ("both", given.get(name, value))]
    changed += [name for name in ("shape", "model", "scale") if getattr(args, name, None) is not None]
    note = f" ({', '.join(sorted(changed))} changed)" if changed else ""
    return Settled(values, preset, f"{named}{note}")


def positive(text: str) -> int:
    """At least 1."""
    return int(_number(text, 1))


def seconds(text: str) -> float:
    """More than nothing."""
    return _number(text, 1e-9)


def share(text: str) -> float:
    """Between 0 and 1."""
    return _number(text, 0, 1)


def scale(text: str) -> float:
    """More than 0, at most 1."""
    return _number(text, 1e-9, 1)


def lengths(text: str) -> Lengths:
    """For argparse, which wants its own error."""
    try:
        return parse_lengths(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str, low: float, high: float | None = None) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not value >= low or (high is not None and value > high) or (low == 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    return value


def need(condition: bool, message: str) -> None:
    """Raise :class:`OctavoError` with ``message`` unless ``condition``."""
    if not condition:
        raise OctavoError(message)
