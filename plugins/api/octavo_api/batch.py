"""``octavo run-batch``: OpenAI's batch files, answered by an engine in this process, without HTTP.

A line in: ``{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}``. A line out for each,
as soon as it is done: ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import IO, Any, Final

import msgspec

from octavo.contracts.api import EngineClient
from octavo.errors import RequestError, nearest
from octavo_api.embeddings import Embeddings
from octavo_api.errors import failure
from octavo_api.generate import Generation
from octavo_api.guard import Call, Handler
from octavo_api.messages import Messages
from octavo_api.metrics import Metrics
from octavo_api.models import Names
from octavo_api.options import OpenAIOptions
from octavo_api.responses import Responses
from octavo_api.scores import Scores
from octavo_api.tokens import Tokens

_RETRIES: Final = 60
"""Times that a request for which the queue had no room is tried again, a second apart or as the engine says."""


@dataclass(slots=True)
class Tally:
    """What became of the lines."""

    answered: int = 0
    failed: int = 0


class Batch:
    """Answers lines. ``most`` of them are being worked on at a time."""

    def __init__(self, client: EngineClient, options: OpenAIOptions, most: int) -> None:
        names, metrics = Names(client, options), Metrics(client)
        generation = Generation(client, options, names, metrics)
        embeddings = Embeddings(client, options, names, metrics)
        tokens = Tokens(client, options, names)
        scores = Scores(embeddings)
        self._most = most
        self._handlers: dict[str, Handler] = {
            "/v1/chat/completions": generation.chat,
            "/v1/completions": generation.completion,
            "/v1/responses": Responses(generation).create,
            "/v1/messages": Messages(generation, tokens).create,
            "/v1/embeddings": embeddings.embeddings,
            **({"/v1/score": scores.score, "/v1/rerank": scores.rerank} if options.scoring == "cosine" else {}),
        }

    async def run(self, lines: AsyncIterator[bytes], write: Callable[[bytes], None]) -> Tally:
        """Answer every line; ``write`` gets one line for each, in the order in which they are done."""
        tally, room = Tally(), asyncio.Semaphore(self._most)

        async def work(number: int, line: bytes) -> None:
            try:
                answer = await self.answer(number, line)
            finally:
                room.release()
            bad = answer["error"] is not None or answer["response"]["status_code"] >= 400
            tally.failed += bad
            tally.answered += not bad
            write(msgspec.json.encode(answer) + b"\n")

        async with asyncio.TaskGroup() as group:
            number = 0
            async for line in lines:
                number += 1
                if line.strip():
                    await room.acquire()
                    group.create_task(work(number, line))
        return tally

    async def answer(self, number: int, line: bytes) -> dict[str, Any]:
        """The answer to line ``number``. Never raises for what is wrong with the line."""
        answer: dict[str, Any] = {
            "id": "batch_req_" + secrets.token_hex(12),
            "custom_id": None,
            "response": None,
            "error": None,
        }
        try:
            request = _object(line, number)
            answer["custom_id"] = request.get("custom_id")
            handler, body = self._handler(request, number)
        except RequestError as error:
            answer["error"] = {"code": error.code or "invalid_request", "message": str(error)}
            return answer
        label = "batch-" + secrets.token_hex(8)
        status, content = await _ask(handler, label, body)
        answer["response"] = {"status_code": status, "request_id": label, "body": content}
        return answer

    def _handler(self, request: Mapping[str, Any], number: int) -> tuple[Handler, dict[str, Any]]:
        custom_id, url, body = request.get("custom_id"), request.get("url"), request.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            raise RequestError(f"Line {number} has no custom_id, a text that its answer is known by.")
        if request.get("method", "POST") != "POST":
            raise RequestError(f"Line {number}: method must be POST, not {str(request['method'])[:20]!r}.")
        if url not in self._handlers:
            known = ", ".join(self._handlers)
            near = nearest(str(url)[:100], self._handlers)
            raise RequestError(f"Line {number}: url must be one of {known}, not {str(url)[:100]!r}.{near}")
        if not isinstance(body, dict):
            raise RequestError(f"Line {number}: body must be an object.")
        if body.get("stream") or body.get("background"):
            raise RequestError(f"Line {number}: a batch can't stream or answer in the background.")
        return self._handlers[url], body


async def _ask(handler: Handler, label: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    call = Call(label, monotonic(), None, {}, {}, {}, msgspec.json.encode(body))
    for attempt in range(_RETRIES + 1):
        try:
            response = await handler(call)
            return response.status_code, msgspec.json.decode(response.body)
        except Exception as error:
            about = failure(error, label)
            if about.status != 429 or attempt == _RETRIES:
                return about.status, msgspec.json.decode(about.body())
            await asyncio.sleep(float(about.headers.get("retry-after", "1")))
    raise AssertionError("unreachable")


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise RequestError(f"Line {number} is not JSON: {error}", code="invalid_json_line") from None
    if not isinstance(found, dict):
        raise RequestError(f"Line {number} is not an object.", code="invalid_json_line")
    return found


async def read_lines(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Lines of a file or a pipe, which may be slow: read off the event loop."""
    while line := await asyncio.to_thread(file.readline):
        yield line
