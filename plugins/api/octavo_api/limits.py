"""What one client may take: body bytes, time to send them, and a place among the requests being answered."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.types import Receive

from octavo.errors import OverloadedError
from octavo_api.disconnect import ClientGone
from octavo_api.errors import HttpError

_SWALLOWED_BYTES: Final = 256 << 20
_SWALLOW_SECONDS: Final = 5.0


class Gate:
    """Counts the requests being answered."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.inside = 0

    def enter(self) -> None:
        """Take a place, or raise :class:`OverloadedError`."""
        if self.limit is not None and self.inside >= self.limit:
            raise OverloadedError(f"This server answers {self.limit} requests at once; try again in a moment.")
        self.inside += 1

    def leave(self) -> None:
        """Give the place back."""
        self.inside -= 1


def check_content_type(value: str | None) -> None:
    """Only JSON is read. Requiring the header also keeps other sites' pages from posting without a preflight."""
    kind = (value or "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    shown = f"not {kind[:60]!r}" if kind else "and the header must be there"
    raise HttpError(415, f"The Content-Type must be application/json, {shown}.", code="unsupported_media_type")


async def read_body(
    receive: Receive, length: str | None, limit: int, timeout: float, *, asks_first: bool = False
) -> bytes:
    """The whole body: at most ``limit`` bytes (else 413) within ``timeout`` seconds (else 408).

    The limit holds while reading, whatever ``length`` (the Content-Length header) says. ``asks_first``: the client
    waits for leave to send its body, so that there is nothing to swallow if it is too large.
    """
    if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > limit):
        if not asks_first:
            await _swallow(receive)
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message.get("body", b""))
                if size > limit:
                    if message.get("more_body", False):
                        await _swallow(receive)
                    raise _too_large(limit)
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise HttpError(
            408, f"The request body did not arrive within {timeout:g} seconds.", headers={"connection": "close"}
        ) from None


async def _swallow(receive: Receive) -> None:
    """Read the rest of a body and drop it, within bounds: a client that still sends when its connection is closed
    would see a reset in place of the answer."""
    left = _SWALLOWED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SWALLOW_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _too_large(limit: int) -> HttpError:
    return HttpError(
        413,
        f"The request body is larger than this server's limit of {limit} bytes.",
        code="request_too_large",
        headers={"connection": "close"},
    )
