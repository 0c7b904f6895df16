"""A server with OpenAI's API, as small as can be, whose answers the tests choose."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from octavo.testing.tiny import tiny_llama


@dataclass
class FakeServer:
    """Answers in a thread of its own. ``framing``: chunked, length (all at once) or close. ``breaks``: the stream
    ends before [DONE]. ``fail``: status of every ``fail_every``-th request. Delays are in seconds."""

    first_delay: float = 0.0
    delay: float = 0.0
    framing: str = "chunked"
    usage: bool = True
    breaks: bool = False
    fail: int = 0
    fail_every: int = 1
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
        body = await reader.readexactly(length)
        self.heads.append(head)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if head.startswith("GET"):
                await self._plain(writer, 200, {"data": [{"id": "fake"}]})
            else:
                self.times.append(time.perf_counter())
                self.bodies.append(json.loads(body))
                if self.fail and len(self.bodies) % self.fail_every == 0:
                    await self._plain(writer, self.fail, {"error": {"message": "no room"}})
                else:
                    await self._stream(writer, self.bodies[-1], "/chat/" in head.splitlines()[0])
        finally:
            self.running -= 1
            writer.close()

    async def _plain(self, writer: asyncio.StreamWriter, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], chat: bool) -> None:
        events = [({"delta": {"role": "assistant", "content": ""}}, 0.0)] if chat else []
        for place in range(body["max_tokens"]):
            text = {"delta": {"content": "x"}} if chat else {"text": "x"}
            events.append(({**text, "finish_reason": None}, self.delay if place else self.first_delay))
        events.append(({"delta": {}} if chat else {"text": ""}, 0.0))
        events[-1][0]["finish_reason"] = "length"
        frames = [({"choices": [choice], "usage": None}, wait) for choice, wait in events]
        if self.usage:
            counts = {"prompt_tokens": 77, "completion_tokens": body["max_tokens"]}
            frames.append(({"choices": [], "usage": counts}, 0.0))
        data = [(b"data: " + json.dumps(frame).encode() + b"\n\n", wait) for frame, wait in frames]
        if not self.breaks:
            data.append((b"data: [DONE]\n\n", 0.0))
        await self._send(writer, data)

    async def _send(self, writer: asyncio.StreamWriter, data: list[tuple[bytes, float]]) -> None:
        head = {"chunked": "Transfer-Encoding: chunked\r\n", "close": ""}
        total = sum(len(piece) for piece, _ in data)
        line = head.get(self.framing, f"Content-Length: {total}\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + line.encode() + b"\r\n")
        for piece, wait in data:
            await asyncio.sleep(wait)
            # Two halves: an event may come in pieces.
            for half in (piece[:9], piece[9:]):
                writer.write(b"%x\r\n%s\r\n" % (len(half), half) if self.framing == "chunked" else half)
                await writer.drain()
        if self.framing == "chunked":
            writer.write(b"0\r\n\r\n")
            await writer.drain()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    fake = FakeServer()
    started, ends = threading.Event(), []

    async def serve() -> None:
        server = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
        fake.port = server.sockets[0].getsockname()[1]
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    yield fake
    ends[0]()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("bench") / "tiny")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def read_lines() -> Any:
    return lines
