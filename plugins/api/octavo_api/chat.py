"""``/v1/chat/completions``: frames of a stream, and the one object of a plain answer."""

from __future__ import annotations

from typing import Any, Final

from octavo.contracts.api import Delta
from octavo_api.answer import Choice, Collected, Head, Usage
from octavo_api.frames import ChunkFrame, encode
from octavo_api.logprobs import chat_logprobs, prompt_logprobs
from octavo_api.reading import PLAIN, Event, Reader, Reading
from octavo_api.schemas_chat import ChatBody

_ROLE: Final = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
_NOTHING: Final = b',"logprobs":null,"finish_reason":null'


class ChatFrames:
    """A choice begins with its role, goes on with reasoning, content and tool calls, and ends with an empty delta
    and the reason. A tool call begins with its id and name; fragments of its arguments follow."""

    def __init__(self, body: ChatBody, head: Head, usage: Usage, reading: Reading = PLAIN) -> None:
        asked = body.stream_options
        self._frame = ChunkFrame(
            head,
            "chat.completion.chunk",
            usage,
            include_usage=bool(asked and asked.include_usage),
            continuous=bool(asked and asked.continuous_usage_stats),
        )
        self._usage = usage
        self._reading = reading
        self._ids = bool(body.return_token_ids)
        self._logprobs = bool(body.logprobs)
        self._readers: dict[int, Reader] = {}
        self._prompt: list[int] = []

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """See :class:`octavo_api.sse.Frames`."""
        self._usage.add(delta)
        if delta.prompt is not None:
            self._prompt = delta.prompt.token_ids
        frames = b""
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = self._reading.reader()
            ids = b',"prompt_token_ids":' + encode(self._prompt) if self._ids else b""
            frames = self._frame.chunk(delta.index, _ROLE + ids)
        if reader.thinking:
            self._usage.think(len(delta.token_ids))
        events = reader.feed(delta.text)
        if delta.finish_reason is not None:
            events += reader.end()
        if not events and delta.token_ids and (self._ids or self._logprobs):
            events = [Event()]
        rest = self._rest(delta)
        for event in events:
            frames += self._frame.chunk(delta.index, b'"delta":' + self._event(event) + rest)
            rest = _NOTHING  # log-probabilities and ids come once
        if delta.finish_reason is not None:
            reason = self._reading.finish_reason(delta.finish_reason, reader.called)
            frames += self._frame.finish(delta.index, b'"delta":{}', reason, delta.stop_reason)
        return frames

    def end(self) -> bytes:
        """See :class:`octavo_api.sse.Frames`."""
        return self._frame.last()

    def _rest(self, delta: Delta) -> bytes:
        logprobs = encode(chat_logprobs(delta.logprobs)) if self._logprobs and delta.logprobs else b"null"
        ids = b',"token_ids":' + encode(delta.token_ids) if self._ids else b""
        return b',"logprobs":%b,"finish_reason":null%b' % (logprobs, ids)

    def _event(self, event: Event) -> bytes:
        if event.reasoning:
            thought = encode(event.reasoning)
            return b'{"reasoning":%b,"reasoning_content":%b}' % (thought, thought)
        if event.call is None:
            return b'{"content":%b}' % encode(event.text)
        call: dict[str, Any] = {"index": event.call, "function": {"arguments": event.arguments}}
        if event.name is not None:
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.call, "id": self._reading.call_id(), "type": "function", "function": function}
        return b'{"tool_calls":[%b]}' % encode(call)


def chat_object(body: ChatBody, head: Head, collected: Collected, reading: Reading = PLAIN) -> dict[str, Any]:
    """The answer without streaming."""
    answer = head.fields("chat.completion")
    answer["choices"] = [_choice(body, choice, index, reading) for index, choice in enumerate(collected.choices)]
    answer["usage"] = collected.usage.fields()
    prompt = collected.prompts[0]
    if prompt is not None and body.return_token_ids:
        answer["prompt_token_ids"] = prompt.token_ids
    if prompt is not None and body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(prompt.logprobs or (), body.prompt_logprobs)
    return answer


def _choice(body: ChatBody, choice: Choice, index: int, reading: Reading) -> dict[str, Any]:
    reason = choice.finish_reason
    fields: dict[str, Any] = {
        "index": index,
        "message": _message(choice, reading),
        "logprobs": chat_logprobs(choice.logprobs) if body.logprobs else None,
        "finish_reason": None if reason is None else reading.finish_reason(reason, choice.reader.called),
        "stop_reason": choice.stop_reason,
    }
    if body.return_token_ids:
        fields["token_ids"] = choice.token_ids
    return fields


def _message(choice: Choice, reading: Reading) -> dict[str, Any]:
    text = "".join(event.text for event in choice.events)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    thought = "".join(event.reasoning for event in choice.events)
    if thought:
        message |= {"reasoning": thought, "reasoning_content": thought}
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for event in choice.events:
        if event.name is not None:
            calls.append({"id": reading.call_id(), "type": "function", "function": {"name": event.name}})
            arguments.append([])
        elif event.call is not None:
            arguments[-1].append(event.arguments)
    if calls:
        for call, parts in zip(calls, arguments, strict=True):
            call["function"]["arguments"] = "".join(parts)
        message |= {"content": text or None, "tool_calls": calls}
    return message
