"""Telling plugins about finished requests, from a thread of its own: a slow or broken observer delays nobody."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final

from octavo.contracts.api import RequestSummary
from octavo.plugins.host import PluginHost

_QUEUE: Final = 4096
_log = logging.getLogger("octavo.engine")


class Observers:
    """Feeds ``octavo_request_finished``. Where nobody implements it, ``wanted`` is false and no thread exists."""

    def __init__(self, host: PluginHost) -> None:
        self.wanted = host.observes_requests
        self._host = host
        self._queue: queue.Queue[RequestSummary | None] = queue.Queue(_QUEUE)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def tell(self, summary: RequestSummary) -> None:
        """Queue a summary; never waits. Summaries that observers can't keep up with are dropped and counted."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="octavo-observers", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(summary)
        except queue.Full:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:  # at 1, 2, 4, 8 …
                _log.warning("observers are too slow: %d request summaries were dropped", self._dropped)

    def close(self, timeout: float = 1.0) -> None:
        """Deliver what is queued, within ``timeout`` seconds."""
        if self._thread is not None and self._thread.is_alive():
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                return
            self._thread.join(timeout)

    def _run(self) -> None:
        while (summary := self._queue.get()) is not None:
            self._host.request_finished(summary)
