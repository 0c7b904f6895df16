"""Scheduling policy `shortest-first`: whoever needs the fewest tokens is served first.

A request seems one token shorter for every ``1 / ageing`` seconds that it has been there. Since all age alike,
only the moment of arrival matters, and the order of two requests never turns round: a request is overtaken by
newer ones for a limited time only, and two requests can't preempt each other in turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.contracts.scheduling import LoadView, RequestView
from octavo_sample.options import ShortestFirstOptions


class ShortestFirst:
    """Implements :class:`octavo.contracts.scheduling.SchedulingPolicy`. Options: :class:`ShortestFirstOptions`."""

    def __init__(self, options: ShortestFirstOptions) -> None:
        self._options = options

    def order(self, requests: Sequence[RequestView], load: LoadView) -> Iterable[int]:
        """The shortest first; sorting is stable, so that equals stay in order of arrival."""
        costs = [self._cost(request) for request in requests]
        return sorted(range(len(costs)), key=costs.__getitem__)

    def victim(self, candidates: Sequence[RequestView], load: LoadView) -> int:
        """The longest; among equals the last to arrive."""
        return max(range(len(candidates)), key=lambda index: (self._cost(candidates[index]), index))

    def prefill_budget(self, load: LoadView, decodes: int, budget: int) -> int:
        """All of it."""
        return budget

    def _cost(self, request: RequestView) -> float:
        tokens = request.max_tokens + self._options.prompt_weight * request.prompt_length
        return tokens + self._options.ageing * request.arrival
