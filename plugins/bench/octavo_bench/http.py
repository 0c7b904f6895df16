"""Just enough of an HTTP/1.1 client for measuring: a connection a request, answers as they arrive.

Of the standard library alone: what measures should bring nothing along that the measured machine lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from octavo.errors import ConfigError, OctavoError

_LONGEST_LINE: Final = 1 << 20
_PIECE: Final = 1 << 16
_MOST_HEADERS: Final = 200
_MESSAGE: Final = 300


class ExchangeError(OctavoError):
    """The server did not answer, or not as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go. ``base`` is the path before ``/completions``, which ends in ``/v1``."""

    host: str
    port: int
    base: str
    tls: ssl.SSLContext | None
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_url(url: str, key: str | None = None) -> Server:
    """``http://127.0.0.1:8000``, with or without ``/v1``. Raises :class:`ConfigError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url!r}: {error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url should look like http://127.0.0.1:8000, not {url!r}.")
    secure = parts.scheme == "https"
    return Server(
        host=parts.hostname,
        port=port or (443 if secure else 80),
        base=parts.path.rstrip("/").removesuffix("/v1") + "/v1",
        tls=ssl.create_default_context() if secure else None,
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


async def pieces(server: Server, method: str, path: str, body: bytes = b"") -> AsyncGenerator[bytes, None]:
    """The body of the answer in pieces, each as soon as it is there; ``path`` follows ``server.base``.

    Raises :class:`ExchangeError` for anything but a whole answer with status 200.
    """
    try:
        reader, writer = await asyncio.open_connection(
            server.host, server.port, ssl=server.tls, limit=_LONGEST_LINE
        )
    except OSError as error:
        raise ExchangeError(f"no connection to {server.host}:{server.port}: {error}.") from None
    try:
        writer.write(_head(server, method, path, body) + body)
        await writer.drain()
        status, headers = await _answer_head(reader)
        if status != 200:
            rest = b"".join([piece async for piece in _body(reader, headers)])
            message = rest[:_MESSAGE].decode(errors="replace")
            raise ExchangeError(f"status {status}: {message}")
        async for piece in _body(reader, headers):
            yield piece
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise ExchangeError(f"the answer broke off or is no HTTP: {error or type(error).__name__}.") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def fetch(server: Server, method: str, path: str, body: bytes = b"") -> bytes:
    """The whole body of the answer."""
    return b"".join([piece async for piece in pieces(server, method, path, body)])


def _head(server: Server, method: str, path: str, body: bytes) -> bytes:
    host = f"[{server.host}]" if ":" in server.host else server.host
    headers = {
        "Host": f"{host}:{server.port}",
        "Connection": "close",
        "Accept": "*/*",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **server.headers,
    }
    lines = [f"{method} {server.base}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _answer_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case; interim answers (1xx) are passed over."""
    while True:
        version, _, rest = (await _line(reader)).partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"it begins with {version[:40]!r}")
        status = int(rest[:3])
        headers: dict[str, str] = {}
        while line := await _line(reader):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > _MOST_HEADERS:
                raise ValueError("it has too many headers")
        if status >= 200:
            return status, headers


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await _line(reader)).partition(";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while await _line(reader):  # trailers
            pass
        return
    left = int(headers["content-length"]) if "content-length" in headers else None
    while left != 0:
        piece = await reader.read(_PIECE if left is None else min(left, _PIECE))
        if not piece:
            if left is not None:
                raise ValueError(f"{left} bytes are missing")
            return
        left = None if left is None else left - len(piece)
        yield piece


async def _line(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\n")).decode("latin-1").rstrip("\r\n")
