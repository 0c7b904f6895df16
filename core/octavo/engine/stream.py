"""The way of one request's deltas to its consumer, on the event loop. What is not taken in time is merged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from octavo.contracts.api import Delta
from octavo.engine.answers import Answers


class Stream:
    """Holds at most one delta for each answer, however slow the consumer. Belongs to one event loop."""

    __slots__ = ("_done", "_error", "_pending", "_waiter", "answers")

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self._pending: dict[int, Delta] = {}
        self._done = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, deltas: Sequence[Delta], done: bool) -> None:
        """Add deltas; ``done`` when no more will come."""
        for delta in deltas:
            earlier = self._pending.get(delta.index)
            if earlier is None:
                self._pending[delta.index] = delta
            else:
                _append(earlier, delta)
        self._done = self._done or done
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, once what came before is taken."""
        if not self._done:
            self._error, self._done = error, True
            self._wake()

    async def next(self) -> Delta | None:
        """The next delta, or ``None`` at the end. Raises what ``fail`` was given."""
        while True:
            if self._pending:
                return self._pending.pop(next(iter(self._pending)))
            if self._error is not None:
                raise self._error
            if self._done:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _append(earlier: Delta, later: Delta) -> None:
    earlier.text += later.text
    earlier.token_ids += later.token_ids
    if later.logprobs is not None:
        earlier.logprobs = (earlier.logprobs or []) + later.logprobs
    earlier.finish_reason, earlier.stop_reason = later.finish_reason, later.stop_reason
    earlier.prompt = earlier.prompt or later.prompt
