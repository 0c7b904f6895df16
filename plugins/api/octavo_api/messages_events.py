"""An Anthropic message as it is built from a chat stream's chunks, and the events that tell of each step."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

Event = dict[str, Any]
_REASONS: Final = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_DELTAS: Final = {"text": "text_delta", "thinking": "thinking_delta"}


class MessageBuilder:
    """``message`` is the object so far; every method yields the events of what it changed."""

    def __init__(self, model: str, stop_sequences: Sequence[str]) -> None:
        self._stops = stop_sequences
        self._calls: dict[int, str] = {}  # arguments so far, by the place of their block
        self._places: dict[int, int] = {}  # of blocks, by the number of the call
        self._open = False
        self._begun = False
        self.message: dict[str, Any] = {
            "id": "msg_" + secrets.token_hex(14),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage({}),
        }

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """One chunk of the chat stream."""
        if chunk.get("usage"):
            self.message["usage"] = _usage(chunk["usage"])
        if not self._begun:
            self._begun = True
            yield {"type": "message_start", "message": {**self.message, "content": []}}
            yield {"type": "ping"}
        for choice in chunk["choices"]:
            delta = choice["delta"]
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            if thought:
                yield from self._say("thinking", thought)
            if delta.get("content"):
                yield from self._say("text", delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            if choice.get("finish_reason") is not None:
                self._finish(choice["finish_reason"], choice.get("stop_reason"))

    def end(self) -> Iterator[Event]:
        """Behind the last chunk."""
        yield from self._close()
        for place, arguments in self._calls.items():
            self.message["content"][place]["input"] = _object(arguments)
        about = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        yield {"type": "message_delta", "delta": about, "usage": self.message["usage"]}
        yield {"type": "message_stop"}

    def _finish(self, reason: str, stop: str | int | None) -> None:
        self.message["stop_reason"] = _REASONS.get(reason, "end_turn")
        if reason == "stop" and stop in self._stops:
            self.message["stop_reason"], self.message["stop_sequence"] = "stop_sequence", stop

    def _say(self, kind: str, text: str) -> Iterator[Event]:
        blocks = self.message["content"]
        if not self._open or blocks[-1]["type"] != kind:
            yield from self._start({"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})})
        blocks[-1][kind] += text
        yield self._delta({"type": _DELTAS[kind], kind: text})

    def _call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        function, number = call.get("function") or {}, call["index"]
        if number not in self._places:
            name = function.get("name") or ""
            identity = call.get("id") or "toolu_" + secrets.token_hex(12)
            yield from self._start({"type": "tool_use", "id": identity, "name": name, "input": {}})
            self._places[number] = len(self.message["content"]) - 1
            self._calls[self._places[number]] = ""
        if arguments := function.get("arguments"):
            self._calls[self._places[number]] += arguments
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _start(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._open = True
        self.message["content"].append(block)
        yield {"type": "content_block_start", "index": self._last, "content_block": dict(block)}

    def _close(self) -> Iterator[Event]:
        if self._open:
            self._open = False
            yield {"type": "content_block_stop", "index": self._last}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._last, "delta": delta}

    @property
    def _last(self) -> int:
        return len(self.message["content"]) - 1


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Anthropic counts what came from the cache apart."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage.get("prompt_tokens", 0) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens", 0),
    }


def _object(text: str) -> Any:
    """A call's arguments; what is no JSON object stays visible as text."""
    try:
        found = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {"raw": text}
    return found if isinstance(found, dict) else {"raw": text}
