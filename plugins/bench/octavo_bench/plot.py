"""A picture of latencies, drawn as SVG by hand: what share of requests was served within which time."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from octavo.errors import ConfigError
from octavo_bench.figures import LATENCIES, percentile

_WIDE, _HIGH, _EDGE = 420, 240, 56
_SHARES: Final = (0, 25, 50, 75, 100)
_POINTS: Final = 201
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.grid{stroke:#ddd}"
    ".line{fill:none;stroke:#1663a5;stroke-width:2}.goal{stroke:#c0392b;stroke-dasharray:4 3}"
)


def write(path: str, title: str, latencies: Mapping[str, Sequence[float]], goals: Mapping[str, float]) -> None:
    """One panel a latency, two a row: milliseconds to the right, share of values up to there upwards, goals in red.

    ``latencies`` are in order. Raises :class:`ConfigError` when the file can't be written.
    """
    drawn = [name for name in LATENCIES if latencies.get(name)]
    panels = [_panel(place, name, latencies[name], goals.get(name)) for place, name in enumerate(drawn)]
    height = 40 + _HIGH * -(-len(drawn) // 2)
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDE} {height}" '
        f'width="{2 * _WIDE}" height="{height}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="title" x="{_EDGE}" y="24">{html.escape(title)}</text>{"".join(panels)}</svg>\n'
    )
    try:
        Path(path).expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error}.") from None


def _panel(place: int, name: str, values: Sequence[float], goal: float | None) -> str:
    left, top = _EDGE + _WIDE * (place % 2), 64 + _HIGH * (place // 2)
    wide, high = _WIDE - _EDGE - 24, _HIGH - 76
    # The slowest 0.5 % would press all others against the axis.
    most = _round_up(max(percentile(values, 99.5), goal or 0.0))

    def at(value: float, share: float) -> tuple[float, float]:
        return left + wide * min(value / most, 1.0), top + high * (1 - share / 100)

    parts = [f'<text x="{left}" y="{top - 10}">{LATENCIES[name]}, ms</text>']
    for share in _SHARES:
        x, y = at(most * share / 100, share)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + wide}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share}%</text>')
        parts.append(
            f'<text x="{x:.1f}" y="{top + high + 18}" text-anchor="middle">{most * share / 100:,.4g}</text>'
        )
    if goal is not None:
        x = at(goal, 0)[0]
        parts.append(f'<line class="goal" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + high}"/>')
    steps = (100 * step / (_POINTS - 1) for step in range(_POINTS))
    points = " ".join("{:.1f},{:.1f}".format(*at(percentile(values, share), share)) for share in steps)
    parts.append(f'<polyline class="line" points="{points}"/>')
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next number whose quarters are easy to read."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value / 4))
    return next(4 * unit * step for step in (1, 2, 2.5, 5, 10) if 4 * unit * step >= value * (1 - 1e-9))
