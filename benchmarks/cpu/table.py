"""The comparison as text: a row for each workload and metric, a column for each engine, then ratios."""

from __future__ import annotations

from results import Key, Result

OWN = "octavo"  # engines whose name begins so are set against all others


def _ratio(own: Result | None, peer: Result | None) -> str:
    """How many times as good as the peer: more tokens per second, or fewer seconds."""
    if own is None or peer is None or not own.value or not peer.value:
        return "-"
    ratio = own.value / peer.value if own.unit == "tok/s" else peer.value / own.value
    return f"{ratio:.2f}x"


def _layout(rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def render(results: list[Result]) -> str:
    """The table. A ratio above 1 means that Octavo is the better one, whatever the unit."""
    by_key: dict[Key, Result] = {(r.workload, r.metric, r.engine): r for r in results}
    engines = list(dict.fromkeys(result.engine for result in results))
    pairs = [(own, peer) for own in engines for peer in engines if own.startswith(OWN) and not peer.startswith(OWN)]
    header = ["workload", "metric", *engines, *(f"{own} : {peer}" for own, peer in pairs)]
    rows = [header]
    for workload, metric, unit in dict.fromkeys((r.workload, r.metric, r.unit) for r in results):
        found = {engine: by_key.get((workload, metric, engine)) for engine in engines}
        values = [f"{result.value:.2f}" if result else "-" for result in found.values()]
        ratios = [_ratio(found[own], found[peer]) for own, peer in pairs]
        rows.append([workload, f"{metric} [{unit}]", *values, *ratios])
    return _layout(rows)
