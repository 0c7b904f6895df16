"""The workloads of the CPU comparison, as plain data: the same ids for every engine and every run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

VOCAB_SIZE = 49152
ID_RANGE = (100, VOCAB_SIZE - 300)  # clear of the special tokens at either end
SEED = 20261124


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to answer greedily, each with exactly `max_tokens` tokens.

    `arrivals` holds the second at which each request comes in; None means that all come at once.
    `runs` is how often one process measures it. With `prefix_cache` the runner must start with a cold cache.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    arrivals: tuple[float, ...] | None = None
    runs: int = 1
    prefix_cache: bool = False

    @property
    def output_tokens(self) -> int:
        """How many tokens a complete answer to the workload has."""
        return len(self.prompts) * self.max_tokens


def _ids(random_source: random.Random, count: int) -> tuple[int, ...]:
    low, high = ID_RANGE
    return tuple(random_source.randrange(low, high) for _ in range(count))


def _prompts(label: str, count: int, length: int) -> tuple[tuple[int, ...], ...]:
    """`count` prompts of their own: the seed is the label, so that no two workloads share a prompt."""
    random_source = random.Random(f"{SEED}-{label}")
    return tuple(_ids(random_source, length) for _ in range(count))


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def warm_up(label: str, arriving: bool) -> Workload:
    """One short request whose prompt is in no workload; `label` makes it differ from other warm-ups."""
    return Workload(
        "warm_up", _prompts(f"warm-up-{label}", 1, 128), max_tokens=8, arrivals=(0.0,) if arriving else None
    )


def _batch64(scale: float) -> Workload:
    return Workload("batch64", _prompts("batch64", _scaled(64, scale), 128), max_tokens=64)


def _batch1(scale: float) -> Workload:
    return Workload("batch1", _prompts("batch1", 1, 128), max_tokens=64, runs=_scaled(3, scale))


def _arrivals(scale: float) -> Workload:
    count, span = _scaled(48, scale), 20.0 * scale
    times = tuple(span * index / count for index in range(count))
    return Workload("arrivals", _prompts("arrivals", count, 128), max_tokens=64, arrivals=times)


def _prefix(name: str, scale: float, cached: bool) -> Workload:
    shared = _prompts("prefix-shared", 1, 1000)[0]
    own = _prompts("prefix-own", _scaled(64, scale), 16)
    prompts = tuple(shared + tail for tail in own)
    return Workload(name, prompts, max_tokens=16, prefix_cache=cached)


_MAKERS: dict[str, Callable[[float], Workload]] = {
    "batch64": _batch64,
    "batch1": _batch1,
    "arrivals": _arrivals,
    "prefix_off": lambda scale: _prefix("prefix_off", scale, cached=False),
    "prefix_on": lambda scale: _prefix("prefix_on", scale, cached=True),
}
NAMES = tuple(_MAKERS)


def make(name: str, scale: float = 1.0) -> Workload:
    """The workload of that name, with `scale` times as many requests as the real one."""
    return _MAKERS[name](scale)
