"""``/v1/chat/completions``: frames of a stream, and the one object of a plain answer."""

from __future__ import annotations

from typing import Any, Final

from octavo.contracts.api import Delta
from octavo_api.answer import Collected, Head, Usage
from octavo_api.frames import ChunkFrame, encode
from octavo_api.logprobs import chat_logprobs, prompt_logprobs
from octavo_api.schemas_chat import ChatBody

_ROLE: Final = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'


class ChatFrames:
    """A choice begins with its role, goes on with content, and ends with an empty delta and the reason."""

    def __init__(self, body: ChatBody, head: Head, usage: Usage) -> None:
        asked = body.stream_options
        self._frame = ChunkFrame(
            head,
            "chat.completion.chunk",
            usage,
            include_usage=bool(asked and asked.include_usage),
            continuous=bool(asked and asked.continuous_usage_stats),
        )
        self._usage = usage
        self._ids = bool(body.return_token_ids)
        self._logprobs = bool(body.logprobs)
        self._begun: set[int] = set()
        self._prompt: list[int] = []

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """See :class:`octavo_api.sse.Frames`."""
        self._usage.add(delta)
        if delta.prompt is not None:
            self._prompt = delta.prompt.token_ids
        frames = b""
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            ids = b',"prompt_token_ids":' + encode(self._prompt) if self._ids else b""
            frames = self._frame.chunk(delta.index, _ROLE + ids)
        if delta.text or (delta.token_ids and (self._ids or self._logprobs)):
            frames += self._frame.chunk(delta.index, self._content(delta))
        if delta.finish_reason is not None:
            frames += self._frame.finish(delta.index, b'"delta":{}', delta.finish_reason, delta.stop_reason)
        return frames

    def end(self) -> bytes:
        """See :class:`octavo_api.sse.Frames`."""
        return self._frame.last()

    def _content(self, delta: Delta) -> bytes:
        logprobs = encode(chat_logprobs(delta.logprobs)) if self._logprobs and delta.logprobs else b"null"
        ids = b',"token_ids":' + encode(delta.token_ids) if self._ids else b""
        return b'"delta":{"content":%b},"logprobs":%b,"finish_reason":null%b' % (encode(delta.text), logprobs, ids)


def chat_object(body: ChatBody, head: Head, collected: Collected) -> dict[str, Any]:
    """The answer without streaming."""
    answer = head.fields("chat.completion")
    answer["choices"] = [_choice(body, collected, index) for index in range(len(collected.choices))]
    answer["usage"] = collected.usage.fields()
    prompt = collected.prompts[0]
    if prompt is not None and body.return_token_ids:
        answer["prompt_token_ids"] = prompt.token_ids
    if prompt is not None and body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(prompt.logprobs or (), body.prompt_logprobs)
    return answer


def _choice(body: ChatBody, collected: Collected, index: int) -> dict[str, Any]:
    choice = collected.choices[index]
    fields: dict[str, Any] = {
        "index": index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": chat_logprobs(choice.logprobs) if body.logprobs else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if body.return_token_ids:
        fields["token_ids"] = choice.token_ids
    return fields
