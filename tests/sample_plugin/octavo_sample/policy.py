"""Scheduling policy `shortest-first`: whoever needs the fewest tokens is served first.

A request counts as one token shorter for every ``1 / ageing`` seconds that it has been there. Since all age alike,
only the moment of arrival matters, and the order of two requests never turns round: a request is overtaken by
newer ones for a limited time only, and two requests can't preempt each other in turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.contracts.scheduling import LoadView, RequestView


class ShortestFirst:
    """Implements :class:`octavo.contracts.scheduling.SchedulingPolicy`. ``ageing`` is in tokens a second."""

    def __init__(self, ageing: float) -> None:
        self._ageing = ageing

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
        return request.prompt_length + request.max_tokens + self._ageing * request.arrival
