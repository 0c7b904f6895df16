"""Serving: an engine, one HTTP server an address, and an orderly end.

The servers listen while the engine still loads, so that readiness can be asked from the first second. At the
end, new requests are refused, those under way may finish, then the engine stops and the servers go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from octavo.cli.listen import Certificate, Served, build_app, certificate_of
from octavo.config.launch import LaunchConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import EngineDeadError
from octavo.plugins.host import PluginHost

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

_LOOK_SECONDS: Final = 0.1
_LAST_WORDS_SECONDS: Final = 1
_IDLE_SECONDS: Final = 75  # longer than clients keep connections, so that they don't use one just closed
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger("octavo.serve")

Listeners = Sequence[tuple[socket.socket, Sequence[Served]]]


class Requests:
    """What the operator wants: to stop, or to stop at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()

    def signalled(self) -> None:
        """The first signal stops; the second does not wait."""
        (self.now if self.stop.is_set() else self.stop).set()


async def serve(
    config: LaunchConfig,
    host: PluginHost,
    listeners: Listeners,
    *,
    drain: float,
    announce: Callable[[AsyncEngine, Sequence[FastAPI]], None],
) -> int:
    """Serve until a signal comes or the engine dies; the exit code. ``drain`` is in seconds.

    Raises what is wrong with the configuration, the plugins or the model.
    """
    wishes = Requests()
    with _signals(wishes.signalled):
        engine = AsyncEngine.from_launch(config, host)
        starting = asyncio.create_task(engine.start())
        servers = _Servers()
        try:
            await asyncio.to_thread(_import_http)
            apps = [_app(engine, surfaces) for _, surfaces in listeners]
            for app, (listener, surfaces) in zip(apps, listeners, strict=True):
                await servers.start(app, listener, certificate_of(surfaces))
            if await _started(starting, wishes):
                announce(engine, apps)
                await _until_over(engine, wishes)
                engine.drain("shutting down")
                await _drain(servers, wishes, drain)
            return 0 if engine.health().alive else 1
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await engine.stop()  # what still streams is told
            await servers.stop()


def _import_http() -> None:
    """Takes a second, in which the engine's process begins to load."""
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401


def _app(engine: AsyncEngine, surfaces: Sequence[Served]) -> FastAPI:
    return build_app([(each.record.name, each.record.build(engine, each.options)) for each in surfaces])


async def _started(starting: asyncio.Task[None], wishes: Requests) -> bool:
    """True when the engine is ready, False when a signal came first."""
    stop = asyncio.create_task(wishes.stop.wait())
    try:
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        return starting.done()
    finally:
        stop.cancel()


async def _until_over(engine: AsyncEngine, wishes: Requests) -> None:
    while not wishes.stop.is_set():
        health = engine.health()
        if not health.alive:
            _log.error("the engine is dead: %s", health.reason)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wishes.stop.wait(), 5 * _LOOK_SECONDS)


async def _drain(servers: _Servers, wishes: Requests, seconds: float) -> None:
    began = time.monotonic()
    if servers.busy:
        _log.info("shutting down: %d requests may finish within %g seconds", servers.busy, seconds)
    while servers.busy and not wishes.now.is_set() and time.monotonic() - began < seconds:
        await asyncio.sleep(_LOOK_SECONDS)


class _Servers:
    """The HTTP servers, one a socket, in this event loop."""

    def __init__(self) -> None:
        self._servers: list[uvicorn.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, app: FastAPI, listener: socket.socket, certificate: Certificate | None) -> None:
        """Serve ``app``; returns when connections are taken."""
        server = _quiet_server(app, certificate)
        task = asyncio.create_task(server.serve([listener]))
        self._servers.append(server)
        self._tasks.append(task)
        while not server.started:
            if task.done():
                task.result()
                raise EngineDeadError("the HTTP server ended while starting.")
            await asyncio.sleep(0.01)

    @property
    def busy(self) -> int:
        """Requests being answered."""
        return sum(len(server.server_state.tasks) for server in self._servers)

    async def stop(self) -> None:
        """End all; what is still being answered gets a second."""
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _quiet_server(app: FastAPI, certificate: Certificate | None) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves the signals to us."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        ssl_certfile=None if certificate is None else certificate.certfile,
        ssl_keyfile=None if certificate is None else certificate.keyfile,
    )
    return Server(config)


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
