"""The constant parts of stream chunks, rendered once a stream, so that a chunk costs one string and a join."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo_api.answer import Head, Usage

encode = msgspec.json.encode


class ChunkFrame:
    """``middle`` holds a choice's own fields as JSON, without the braces around them."""

    def __init__(self, head: Head, kind: str, usage: Usage, *, include_usage: bool, continuous: bool) -> None:
        fields = encode(head.fields(kind))
        self._prefix = b"data: " + fields[:-1] + b',"choices":['
        self._usage = usage
        self._include_usage = include_usage or continuous
        self._continuous = continuous
        self._suffix = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"

    def chunk(self, index: int, middle: bytes) -> bytes:
        """An event with one choice."""
        suffix = self._suffix
        if self._continuous:
            suffix = b'}],"usage":' + encode(self._usage.fields()) + b"}\n\n"
        return b'%b{"index":%d,%b%b' % (self._prefix, index, middle, suffix)

    def last(self) -> bytes:
        """The event with the token counts and no choices, where they were asked for."""
        if not self._include_usage:
            return b""
        return self._prefix + b'],"usage":' + encode(self._usage.fields()) + b"}\n\n"

    def finish(self, index: int, empty: bytes, reason: str, stop_reason: str | int | None) -> bytes:
        """The event that ends a choice; ``empty`` is its content field with nothing in it."""
        tail: dict[str, Any] = {"logprobs": None, "finish_reason": reason, "stop_reason": stop_reason}
        return self.chunk(index, empty + b"," + encode(tail)[1:-1])
