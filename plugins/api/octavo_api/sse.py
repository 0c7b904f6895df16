"""Server-sent events: frames made of ready-rendered JSON, and the response that sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.contracts.api import Delta
from octavo_api.disconnect import ClientGone, unless_gone
from octavo_api.errors import failure
from octavo_api.streams import Primed

DONE: Final = b"data: [DONE]\n\n"
_COMMENT: Final = b": keep-alive\n\n"


class Frames(Protocol):
    """Renders one answer. All frames are whole events, ready to send; several may come as one."""

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """Frames for one delta; may be empty."""
        ...

    def end(self) -> bytes:
        """Frames after the last delta."""
        ...


async def events(deltas: Primed[tuple[int, Delta]], frames: Frames, request_id: str) -> AsyncGenerator[bytes, None]:
    """Everything that a stream sends. An error in mid-stream becomes an event, and ``[DONE]`` still follows."""
    try:
        async for prompt, delta in deltas:
            data = frames.delta(prompt, delta)
            if data:
                yield data
        yield frames.end() + DONE
    except Exception as error:
        yield error_event(error, request_id)
    finally:
        await deltas.aclose()


def error_event(error: BaseException, request_id: str) -> bytes:
    """An error as the last events of a stream."""
    return b"data: " + failure(error, request_id).body() + b"\n\n" + DONE


class EventStream(Response):
    """Sends events until they end or the client hangs up; then closes the generator, which aborts the request.

    ``keep_alive``: a comment is sent after this many silent seconds. ``deadline`` is in the event loop's
    time.
    ``closed`` is called once at the end, whatever happens. ``last_words`` renders the error of a stream that took
    too long.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        request_id: str,
        keep_alive: float,
        deadline: float | None,
        last_words: Callable[[BaseException, str], bytes] | None = None,
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.closed: Callable[[], None] = lambda: None
        self.source = source
        self._request_id = request_id
        self._last_words = error_event if last_words is None else last_words
        self._keep_alive = keep_alive
        self._deadline = deadline
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        try:
            await unless_gone(receive, self._run(send))
        except (ClientGone, OSError):
            pass  # nobody is there to be told
        finally:
            await self.source.aclose()
            self.closed()

    async def _run(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ticker = asyncio.create_task(self._tick(send))
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._send_all(self.source, send)
        except TimeoutError as error:
            await self._send(self._last_words(error, self._request_id), send)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, source: AsyncIterator[bytes], send: Send) -> None:
        async for data in source:
            await self._send(data, send)

    async def _send(self, data: bytes, send: Send) -> None:
        self._last_sent = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _tick(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._keep_alive)
            if asyncio.get_running_loop().time() - self._last_sent >= self._keep_alive * 0.9:
                await self._send(_COMMENT, send)
