"""The thread that listens to an engine: it makes text of tokens, and wakes the event loop once a batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from octavo.contracts.api import Delta, EngineStats
from octavo.engine.failures import restore
from octavo.engine.links import Link
from octavo.engine.messages import AdapterReply, Beat, Fatal, FromEngine, Output, Outputs, Ready, Rejected
from octavo.engine.stream import Stream
from octavo.errors import EngineDeadError, OctavoError, RequestError

_POLL_SECONDS: Final = 0.05  # how soon the death of a silent engine is noticed
_log = logging.getLogger("octavo.engine")


@dataclass(slots=True)
class News:
    """A batch of messages, digested. ``aborts`` are ids that ran into a stop string."""

    deltas: list[tuple[Stream, list[Delta], bool]] = field(default_factory=list)
    errors: list[tuple[Stream, Exception]] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)
    adapters: list[AdapterReply] = field(default_factory=list)
    stats: EngineStats | None = None
    ready: Ready | None = None
    death: Exception | None = None


class Receiver:
    """Calls ``take`` on ``loop`` with the news. ``streams``, by answer id, belongs to the loop; it is only read
    here."""

    def __init__(
        self,
        link: Link,
        streams: Mapping[int, Stream],
        loop: asyncio.AbstractEventLoop,
        take: Callable[[News], None],
    ) -> None:
        self._link = link
        self._streams = streams
        self._loop = loop
        self._take = take
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="octavo-receiver", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; returns when the thread has left the link alone."""
        self._stopped = True
        self._thread.join()

    def _run(self) -> None:
        dead = False
        while not self._stopped and not dead:
            news = self._listen()
            if news is None:
                continue
            dead = news.death is not None
            with contextlib.suppress(RuntimeError):  # the loop was closed without stopping the engine
                self._loop.call_soon_threadsafe(self._take, news)

    def _listen(self) -> News | None:
        try:
            messages = self._link.receive(_POLL_SECONDS)
        except EngineDeadError as error:
            return News(death=error)
        except Exception as error:
            _log.exception("the engine's messages could not be read")
            return News(death=error)
        return self._digest(messages) if messages else None

    def _digest(self, messages: list[FromEngine]) -> News:
        news, now = News(), time.monotonic()
        for message in messages:
            match message:
                case Outputs():
                    for output in message.outputs:
                        self._answer(output, now, news)
                case Beat():
                    news.stats = message.stats
                case Rejected():
                    self._reject(message, news)
                case AdapterReply():
                    news.adapters.append(message)
                case Ready():
                    news.ready = message
                case Fatal():
                    news.death = restore(message.failure)
        return news

    def _answer(self, output: Output, now: float, news: News) -> None:
        stream = self._streams.get(output.id)
        if stream is None:
            return  # its consumer has gone
        try:
            deltas, abort = stream.answers.push(output, now)
        except OctavoError as error:
            news.errors.append((stream, error))
            return
        except Exception as error:
            _log.exception("the answer to %s could not be put into text", stream.answers.label)
            news.errors.append((stream, _internal(error)))
            return
        if abort is not None:
            news.aborts.append(abort)
        if deltas:
            news.deltas.append((stream, deltas, not stream.answers.unfinished))

    def _reject(self, message: Rejected, news: News) -> None:
        stream = self._streams.get(message.id)
        if stream is not None:
            stream.answers.unfinished.clear()
            news.errors.append((stream, restore(message.failure)))


def _internal(error: Exception) -> RequestError:
    failure = RequestError(
        f"the answer could not be put into text: {type(error).__name__}: {error}", code="internal_error"
    )
    failure.status = 500
    return failure
