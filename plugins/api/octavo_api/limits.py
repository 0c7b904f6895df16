"""What one client may take: body bytes, time to send them, and a place among the requests being answered."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from octavo.errors import OverloadedError
from octavo_api.disconnect import ClientGone
from octavo_api.errors import HttpError


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


async def read_body(receive: Receive, length: str | None, limit: int, timeout: float) -> bytes:
    """The whole body: at most ``limit`` bytes (else 413) within ``timeout`` seconds (else 408).

    The limit holds while reading, whatever ``length`` (the Content-Length header) says.
    """
    if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > limit):
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
                    raise _too_large(limit)
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise HttpError(
            408, f"The request body did not arrive within {timeout:g} seconds.", headers={"connection": "close"}
        ) from None


def _too_large(limit: int) -> HttpError:
    return HttpError(
        413,
        f"The request body is larger than this server's limit of {limit} bytes.",
        code="request_too_large",
        headers={"connection": "close"},
    )
