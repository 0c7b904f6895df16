"""The built-in scheduling policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.contracts.scheduling import LoadView, RequestView


class FcfsPolicy:
    """First come, first served. Free of starvation: the oldest request is never preempted for a newer one."""

    def order(self, requests: Sequence[RequestView], load: LoadView) -> Iterable[int]:
        """As they come: the scheduler keeps requests in order of arrival."""
        return range(len(requests))

    def victim(self, candidates: Sequence[RequestView], load: LoadView) -> int:
        """The last to arrive."""
        return len(candidates) - 1

    def prefill_budget(self, load: LoadView, decodes: int, budget: int) -> int:
        """All of it."""
        return budget


class PriorityPolicy:
    """Lower priority numbers first; among equals, first come, first served.

    A request with a worse priority may wait for as long as better ones keep coming.
    """

    def order(self, requests: Sequence[RequestView], load: LoadView) -> Iterable[int]:
        """By priority; sorting is stable, so that equals stay in order of arrival."""
        priorities = [request.priority for request in requests]
        return sorted(range(len(priorities)), key=priorities.__getitem__)

    def victim(self, candidates: Sequence[RequestView], load: LoadView) -> int:
        """The worst priority; among equals the last to arrive."""
        return max(range(len(candidates)), key=lambda index: (candidates[index].priority, index))

    def prefill_budget(self, load: LoadView, decodes: int, budget: int) -> int:
        """All of it."""
        return budget
