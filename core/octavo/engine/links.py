"""Where an engine runs, as the API process sees it: a way to send, a way to receive, an end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from octavo.config.launch import LaunchConfig
from octavo.engine.core import EngineCore, serve
from octavo.engine.failures import describe, log_unexpected
from octavo.engine.messages import Fatal, FromEngine, Stop, ToEngine
from octavo.errors import EngineDeadError
from octavo.plugins.host import PluginHost

_STOP_SECONDS: Final = 30.0
T = TypeVar("T")


class Link(Protocol):
    """One engine. ``send`` is called from one thread, ``receive`` from another."""

    def start(self) -> None:
        """Begin to build the engine, without waiting. The first message is ``Ready`` or ``Fatal``."""
        ...

    def send(self, message: ToEngine) -> None: ...

    def receive(self, timeout: float) -> list[FromEngine]:
        """Messages in order; waits up to ``timeout`` seconds. Raises :class:`EngineDeadError` once the engine
        is gone and all it had to say was received."""
        ...

    def close(self, patient: bool) -> None:
        """End the engine, however it is doing; nobody may be inside ``receive``. Takes seconds at most, and
        next to none unless ``patient``."""
        ...


class ThreadLink:
    """An engine in a thread of this process: same loop, same messages, no sockets."""

    def __init__(self, build: Callable[[], EngineCore]) -> None:
        self._build = build
        self._channel = _Queues()
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def send(self, message: ToEngine) -> None:
        """Queue a message."""
        self._channel.inbox.put(message)

    def receive(self, timeout: float) -> list[FromEngine]:
        """See :class:`Link`."""
        messages = _take(self._channel.outbox, timeout)
        if not messages and not self._thread.is_alive() and self._channel.outbox.empty():
            raise EngineDeadError("the engine's thread has ended.")
        return [message for batch in messages for message in batch]

    def close(self, patient: bool) -> None:
        """Ask the loop to end, and wait for the step that it is in. A thread can't be made to end."""
        self._channel.inbox.put(Stop())
        if self._thread.ident is not None and patient:
            self._thread.join(timeout=_STOP_SECONDS)

    def _run(self) -> None:
        try:
            core = self._build()
        except Exception as error:
            log_unexpected(error)
            self._channel.send([Fatal(describe(error))])
            return
        self._channel.send([core.ready])
        serve(core, self._channel)


class _Queues:
    """A :class:`octavo.engine.core.Channel` between two threads."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[list[FromEngine]] = queue.SimpleQueue()

    def receive(self, timeout: float) -> list[ToEngine]:
        return _take(self.inbox, timeout)

    def send(self, messages: list[FromEngine]) -> None:
        self.outbox.put(messages)


def _take(source: queue.SimpleQueue[T], timeout: float) -> list[T]:
    items: list[T] = []
    try:
        items.append(source.get(timeout=timeout) if timeout > 0 else source.get_nowait())
        while True:
            items.append(source.get_nowait())
    except queue.Empty:
        return items


def inline_link(config: LaunchConfig, host: PluginHost) -> ThreadLink:
    """An engine in a thread of this process."""

    def build() -> Any:
        # Only an engine in this process needs what these import.
        from octavo.assemble import resolve
        from octavo.engine.boot import build_core

        return build_core(resolve(config, host))

    return ThreadLink(build)
