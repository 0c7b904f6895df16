"""Who answers in ``octavo chat``: an engine of our own, or a server with OpenAI's API."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from octavo.config.launch import LaunchConfig
from octavo.errors import OctavoError, RequestError
from octavo.plugins.host import PluginHost

Messages = Sequence[Mapping[str, str]]
_TIMEOUT: Final = 600
_LONGEST_LINE: Final = 1 << 20


class Talker(Protocol):
    """Answers conversations. ``name`` says who it is."""

    name: str

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """The answer in pieces; closing it aborts the request. Raises :class:`RequestError` when it can't be
        given, and ``KeyboardInterrupt`` on Ctrl-C, after which the next one may be asked for."""
        ...


class EngineTalker:
    """Loads the model in a process of its own. ``settings`` go over the checkpoint's sampling defaults."""

    def __init__(self, config: LaunchConfig, host: PluginHost, settings: Mapping[str, Any]) -> None:
        from octavo.engine.async_engine import AsyncEngine
        from octavo.params import SamplingParams

        SamplingParams(**settings)  # wrong ones are refused before the model is loaded
        self._engine = AsyncEngine.from_launch(config, host)
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._engine.start())
            values = {"max_tokens": None, **self._engine.default_sampling, **settings}
            self._params = SamplingParams(**values)
        except BaseException:
            self.close()
            raise
        self.name = self._engine.model_name

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """See :class:`Talker`. Each piece is one run of the event loop, which Ctrl-C cancels."""
        pieces = self._pieces(messages)
        try:
            while (piece := self._runner.run(_next(pieces))) is not None:
                yield piece
        finally:
            self._runner.run(_close(pieces))

    async def _pieces(self, messages: Messages) -> AsyncGenerator[str, None]:
        prompt = await self._engine.render_chat(messages)
        async for delta in self._engine.generate(prompt, self._params, add_special_tokens=False):
            yield delta.text

    def close(self) -> None:
        """Stop the engine."""
        self._runner.run(self._engine.stop())
        self._runner.close()


async def _next(pieces: AsyncGenerator[str, None]) -> str | None:
    return await anext(pieces, None)


async def _close(pieces: AsyncGenerator[str, None]) -> None:
    await pieces.aclose()


class ServerTalker:
    """Talks to ``url``, whose path may end in ``/v1`` or leave it out."""

    def __init__(self, url: str, model: str | None, key: str | None, settings: Mapping[str, Any]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OctavoError(f"--url should look like http://127.0.0.1:8000, not {url!r}.")
        self._connect: Callable[[], http.client.HTTPConnection] = lambda: _CONNECTIONS[parts.scheme](
            parts.hostname or "", parts.port, timeout=_TIMEOUT
        )
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._fields = {**settings, **({} if model is None else {"model": model}), "stream": True}
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self.name = f"{model or 'the model'} at {url}"

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """See :class:`Talker`. Closing the connection aborts the request."""
        connection = self._connect()
        try:
            connection.request(
                "POST", self._path, json.dumps({**self._fields, "messages": [*messages]}), self._headers
            )
            response = connection.getresponse()
            if response.status != 200:
                raise RequestError(_message(response.read(_LONGEST_LINE), response.status))
            yield from _texts(response)
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(f"no answer from {self.name}: {error or type(error).__name__}.") from error
        finally:
            connection.close()


_CONNECTIONS: Final[dict[str, type[http.client.HTTPConnection]]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


def _texts(response: http.client.HTTPResponse) -> Iterator[str]:
    """The texts of a stream of chat chunks."""
    while line := response.readline(_LONGEST_LINE):
        data = line.strip()
        if not data.startswith(b"data:"):
            continue
        data = data.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        yield from _contents(data)


def _contents(data: bytes) -> Iterator[str]:
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise RequestError(_message(data, 200))
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"the server sent something that is no chat chunk: {data[:100]!r}.") from error


def _message(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return f"the server answered with status {status}: {body[:200].decode(errors='replace')}"
