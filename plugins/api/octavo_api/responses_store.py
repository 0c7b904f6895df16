"""Responses that are kept: in memory, so many of them, so many bytes, so long."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

import msgspec

from octavo.errors import NotFoundError, OverloadedError
from octavo_api.responses_events import ResponseBuilder

MOST_BYTES: Final = 256 << 20


@dataclass(slots=True)
class Kept:
    """A response, the chat messages that it answered, and the task that works on it."""

    builder: ResponseBuilder
    messages: list[dict[str, Any]]
    task: asyncio.Task[None] | None = None
    nbytes: int = 0
    expires: float = field(default=float("inf"))


class ResponseStore:
    """Holds at most ``limit`` responses; the oldest that are done make room. Belongs to one event loop."""

    def __init__(self, limit: int, ttl: float, most_bytes: int = MOST_BYTES) -> None:
        self._limit, self._ttl, self._most_bytes = limit, ttl, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kept: Kept) -> None:
        """Keep a new response. Raises :class:`OverloadedError` when all places are taken by unfinished ones."""
        self._forget_old()
        if len(self._kept) >= self._limit and not self._drop_oldest():
            raise OverloadedError(f"{self._limit} responses are being worked on, the most that are kept.")
        self._kept[kept.builder.response["id"]] = kept

    def settle(self, kept: Kept) -> None:
        """A response has ended: from now on its time runs, and its bytes count."""
        if kept.builder.response["id"] not in self._kept:
            return
        kept.expires = monotonic() + self._ttl
        kept.nbytes = len(msgspec.json.encode(kept.builder.response)) + len(msgspec.json.encode(kept.messages))
        self._nbytes += kept.nbytes
        while self._nbytes > self._most_bytes and self._drop_oldest():
            pass

    def get(self, response_id: str) -> Kept:
        """Raises :class:`NotFoundError`."""
        self._forget_old()
        found = self._kept.get(response_id)
        if found is None:
            raise NotFoundError(
                f"There is no response {response_id[:100]!r} here; responses are kept for {self._ttl:g} seconds.",
                param="response_id",
                code="not_found",
            )
        return found

    def remove(self, response_id: str) -> Kept:
        """Forget it. Raises :class:`NotFoundError`."""
        self.get(response_id)
        return self._drop(response_id)

    def _forget_old(self) -> None:
        now = monotonic()
        for response_id in [key for key, kept in self._kept.items() if kept.expires <= now]:
            self._drop(response_id)

    def _drop_oldest(self) -> bool:
        oldest = next((key for key, kept in self._kept.items() if kept.builder.done), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _drop(self, response_id: str) -> Kept:
        kept = self._kept.pop(response_id)
        self._nbytes -= kept.nbytes
        return kept
