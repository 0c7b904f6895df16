"""A chat completion as other protocols use it: they send the chat route a request and read its chunks.

So whatever the chat route can do, they can do, and what it refuses, they refuse.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from octavo.errors import RequestError
from octavo_api.generate import Generation
from octavo_api.guard import Call
from octavo_api.sse import EventStream

_DATA = b"data: "


class StreamFailed(Exception):
    """The chat stream ended with an error: its ``detail`` is OpenAI's error object, ready to be shown."""

    def __init__(self, detail: Mapping[str, Any]) -> None:
        super().__init__(str(detail.get("message", "")))
        self.detail = dict(detail)


async def chat_chunks(
    generation: Generation, call: Call, fields: Mapping[str, Any], names: Mapping[str, str]
) -> AsyncGenerator[dict[str, Any], None]:
    """Chunks of a chat completion for a request with ``fields``, the one with the token counts last.

    What the chat route refuses is raised here; ``names`` are the caller's words for chat's fields. While iterating,
    raises :class:`StreamFailed`. Closing the generator aborts the request.
    """
    body = {**fields, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    try:
        response = await generation.chat(replace(call, body=msgspec.json.encode(body)))
    except RequestError as error:
        raise _renamed(error, names) from None
    if not isinstance(response, EventStream):
        raise TypeError("the chat route did not answer with a stream")
    return _decoded(response.source)


async def _decoded(source: AsyncGenerator[bytes, None]) -> AsyncGenerator[dict[str, Any], None]:
    try:
        async for data in source:
            for event in data.split(b"\n\n"):
                if not event.startswith(_DATA) or event.startswith(b"data: [DONE]"):
                    continue
                chunk = msgspec.json.decode(event[len(_DATA) :])
                if "error" in chunk:
                    raise StreamFailed(chunk["error"])
                yield chunk
    finally:
        await source.aclose()


def _renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error, about the field that the client sent."""
    param = error.param or ""
    for chat, theirs in names.items():
        if param == chat or param.startswith((chat + ".", chat + "[")):
            error.param = theirs
            error.args = (str(error).replace(chat, theirs, 1),)
    return error
