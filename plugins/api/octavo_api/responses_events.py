"""A response as it is built from a chat stream's chunks, and the events that tell of each step.

The names, orders and sequence numbers are those of OpenAI's Responses API.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from octavo_api.schemas_responses import ResponseBody

Event = dict[str, Any]
_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseBuilder:
    """``response`` is the object so far; every method yields the events of what it changed."""

    def __init__(self, body: ResponseBody, model: str) -> None:
        self._number = -1
        self._item: dict[str, Any] | None = None  # the open item, and its place
        self._part: dict[str, Any] | None = None
        self._calls: dict[int, dict[str, Any]] = {}
        self._reason = "stop"
        self.response: dict[str, Any] = {
            "id": "resp_" + secrets.token_hex(16),
            "object": "response",
            "created_at": int(time.time()),
            "status": "queued" if body.background else "in_progress",
            "background": bool(body.background),
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    @property
    def done(self) -> bool:
        """Whether nothing will change any more."""
        return self.response["status"] not in ("queued", "in_progress")

    def begin(self) -> Iterator[Event]:
        """Before the first chunk."""
        yield self._event("response.created", response=self._snapshot())
        self.response["status"] = "in_progress"
        yield self._event("response.in_progress", response=self._snapshot())

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """One chunk of the chat stream."""
        if chunk.get("usage"):
            self.response["usage"] = _usage(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            if thought:
                yield from self._say("reasoning", thought, None)
            if delta.get("content"):
                yield from self._say("message", delta["content"], choice.get("logprobs"))
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._reason = choice.get("finish_reason") or self._reason

    def end(self) -> Iterator[Event]:
        """Behind the last chunk."""
        if not self.response["output"]:  # an empty answer is a message too
            yield from self._open("message")
        status = "incomplete" if self._reason in _REASONS else "completed"
        yield from self._close(status)
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": _REASONS[self._reason]}
        self.response["status"] = status
        yield self._event(f"response.{status}", response=self._snapshot())

    def fail(self, message: str, code: str | None) -> Iterator[Event]:
        """The answer broke off."""
        self.response["error"] = {"code": code or "server_error", "message": message}
        self.response["status"] = "failed"
        yield self._event("response.failed", response=self._snapshot())

    def cancel(self) -> None:
        """Somebody asked for the end, or nobody listens any more."""
        if not self.done:
            self.response["status"] = "cancelled"

    def _say(self, kind: str, text: str, logprobs: Mapping[str, Any] | None) -> Iterator[Event]:
        if self._item is None or self._item["type"] != kind:
            yield from self._close("completed")
            yield from self._open(kind)
        assert self._part is not None
        self._part["text"] += text
        scored = _logprobs(logprobs)
        name, extra = "reasoning_text", {}
        if kind == "message":
            self._part["logprobs"] += scored
            name, extra = "output_text", {"logprobs": scored}
        yield self._event(f"response.{name}.delta", **self._place(), content_index=0, delta=text, **extra)

    def _open(self, kind: str) -> Iterator[Event]:
        item: dict[str, Any] = {"id": _id("msg_" if kind == "message" else "rs_"), "type": kind}
        if kind == "message":
            item |= {"role": "assistant", "status": "in_progress", "content": []}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item |= {"status": "in_progress", "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        yield from self._add(item)
        item["content"].append(part)
        self._part = part
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=dict(part))

    def _add(self, item: dict[str, Any]) -> Iterator[Event]:
        self.response["output"].append(item)
        self._item = item
        yield self._event("response.output_item.added", output_index=self._last, item=_copy(item))

    def _call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        function = call.get("function") or {}
        item = self._calls.get(call["index"])
        if item is None:
            yield from self._close("completed")
            item = self._calls[call["index"]] = {
                "id": _id("fc_"),
                "type": "function_call",
                "call_id": call.get("id") or _id("call_"),
                "name": function.get("name") or "",
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._add(item)
        arguments = function.get("arguments")
        if arguments:
            item["arguments"] += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(item), delta=arguments)

    def _close(self, status: str) -> Iterator[Event]:
        """The open item has ended, if there is one."""
        item, part, self._item, self._part = self._item, self._part, None, None
        if item is None:
            return
        item["status"] = status
        place = self._place(item)
        if item["type"] == "function_call":
            yield self._event(
                "response.function_call_arguments.done", **place, arguments=item["arguments"], name=item["name"]
            )
        elif part is not None:
            name, extra = "reasoning_text", {}
            if item["type"] == "message":
                name, extra = "output_text", {"logprobs": part["logprobs"]}
            yield self._event(f"response.{name}.done", **place, content_index=0, text=part["text"], **extra)
            yield self._event("response.content_part.done", **place, content_index=0, part=dict(part))
        yield self._event("response.output_item.done", output_index=place["output_index"], item=_copy(item))

    @property
    def _last(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self, item: Mapping[str, Any] | None = None) -> dict[str, Any]:
        output = self.response["output"]
        index = self._last if item is None else next(i for i, one in enumerate(output) if one is item)
        return {"item_id": output[index]["id"], "output_index": index}

    def _snapshot(self) -> dict[str, Any]:
        return {**self.response, "output": [_copy(item) for item in self.response["output"]]}

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


def _copy(item: Mapping[str, Any]) -> dict[str, Any]:
    copied = dict(item)
    if "content" in copied:
        copied["content"] = [dict(part) for part in copied["content"]]
    return copied


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }


def _logprobs(logprobs: Mapping[str, Any] | None) -> Sequence[Any]:
    return (logprobs or {}).get("content") or []


def _id(prefix: str) -> str:
    return prefix + secrets.token_hex(16)
