"""From what a load generator saw to figures: rates, percentiles, goodput."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from octavo.errors import ConfigError

PERCENTILES: Final = (50, 90, 95, 99)
LATENCIES: Final[Mapping[str, str]] = {
    "ttft": "time to first token (TTFT)",
    "tpot": "time per further token (TPOT)",
    "itl": "time between two pieces (ITL)",
    "e2el": "time to the end (E2EL)",
}


@dataclass(slots=True)
class Seen:
    """One request as the client saw it. Seconds on one clock; ``pieces`` are the times at which tokens came."""

    sent: float
    pieces: list[float] = field(default_factory=list)
    finished: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    def latencies(self) -> dict[str, list[float]]:
        """Milliseconds by the names of :data:`LATENCIES`; ``tpot`` and ``itl`` may be empty."""
        first = self.pieces[0]
        gaps = [1000 * (after - before) for before, after in zip(self.pieces, self.pieces[1:], strict=False)]
        rest = self.output_tokens - 1
        return {
            "ttft": [1000 * (first - self.sent)],
            "tpot": [1000 * (self.pieces[-1] - first) / rest] if rest > 0 else [],
            "itl": gaps,
            "e2el": [1000 * (self.finished - self.sent)],
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """With straight lines between the values, as numpy's default; ``values`` are in order and not empty."""
    place = (len(values) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def collected(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """All latencies of the requests that succeeded, in milliseconds and in order."""
    values: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for each in seen:
        if each.error is None:
            for name, found in each.latencies().items():
                values[name] += found
    return {name: sorted(found) for name, found in values.items()}


def figures(seen: Sequence[Seen], seconds: float, goals: Mapping[str, float]) -> dict[str, float]:
    """By their names in records. ``seconds`` is the whole run; ``goals`` are milliseconds by latency."""
    good = [each for each in seen if each.error is None]
    result = {
        "requests_s": len(good) / seconds,
        "output_tok_s": sum(each.output_tokens for each in good) / seconds,
        "input_tok_s": sum(each.input_tokens for each in good) / seconds,
        "failed_requests": float(len(seen) - len(good)),
    }
    if goals:
        result["goodput_requests_s"] = sum(_meets(each, goals) for each in good) / seconds
    for name, values in collected(seen).items():
        if values:
            result[f"{name}_ms_mean"] = math.fsum(values) / len(values)
            result.update({f"{name}_ms_p{rank}": percentile(values, rank) for rank in PERCENTILES})
    return result


def _meets(seen: Seen, goals: Mapping[str, float]) -> bool:
    found = seen.latencies()
    return all(max(found[name], default=0.0) <= limit for name, limit in goals.items())


def parse_goals(texts: Sequence[str]) -> dict[str, float]:
    """``ttft:200`` and the like, in milliseconds. Raises :class:`ConfigError`."""
    goals: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            goals[name] = float(value)
        except ValueError:
            goals[name] = -1.0
        if name not in LATENCIES or not goals[name] > 0:
            raise ConfigError(f"--goodput {text!r} should look like ttft:200, with one of {', '.join(LATENCIES)}.")
    return goals
