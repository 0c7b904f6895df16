"""``/v1/completions``: frames of a stream, and the one object of a plain answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.contracts.api import Delta, PromptInfo, TokenLogprob
from octavo_api.answer import Collected, Head, Usage
from octavo_api.frames import ChunkFrame, encode
from octavo_api.logprobs import CompletionLogprobs, prompt_logprobs
from octavo_api.schemas_completions import CompletionBody


class CompletionFrames:
    """A choice's text in pieces, after the prompt where ``echo`` asks for it; the last one has the reason."""

    def __init__(self, body: CompletionBody, head: Head, usage: Usage, n: int, echoes: Sequence[Echo]) -> None:
        asked = body.stream_options
        self._frame = ChunkFrame(
            head,
            "text_completion",
            usage,
            include_usage=bool(asked and asked.include_usage),
            continuous=bool(asked and asked.continuous_usage_stats),
        )
        self._usage = usage
        self._n = n
        self._ids = bool(body.return_token_ids)
        self._logprobs = body.logprobs is not None
        self._top = body.logprobs or 0
        self._echoes = echoes
        self._prompts: dict[int, PromptInfo] = {}
        self._begun: dict[int, CompletionLogprobs] = {}

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """See :class:`octavo_api.sse.Frames`."""
        self._usage.add(delta)
        if delta.prompt is not None:
            self._prompts[prompt] = delta.prompt
        index = prompt * self._n + delta.index
        frames = b"" if index in self._begun else self._begin(prompt, index)
        if delta.text or (delta.token_ids and (self._ids or self._logprobs)):
            frames += self._frame.chunk(index, self._piece(index, delta))
        if delta.finish_reason is not None:
            frames += self._frame.finish(index, b'"text":""', delta.finish_reason, delta.stop_reason)
        return frames

    def end(self) -> bytes:
        """See :class:`octavo_api.sse.Frames`."""
        return self._frame.last()

    def _begin(self, prompt: int, index: int) -> bytes:
        shape = self._begun[index] = CompletionLogprobs(self._top)
        info = self._prompts.get(prompt)
        if not self._echoes and not (self._ids and info):
            return b""
        text, logprobs, ids = "", b"null", b""
        if self._echoes:
            text = self._echoes[prompt].text
            shape.offset = len(text)
        if self._echoes and self._logprobs and info is not None and info.logprobs is not None:
            logprobs = encode(self._echoes[prompt].logprobs(info, shape))
        if self._ids and info is not None:
            ids = b',"prompt_token_ids":' + encode(info.token_ids)
        return self._frame.chunk(
            index, b'"text":%b,"logprobs":%b,"finish_reason":null%b' % (encode(text), logprobs, ids)
        )

    def _piece(self, index: int, delta: Delta) -> bytes:
        logprobs, ids = b"null", b""
        if self._logprobs and delta.logprobs:
            logprobs = encode(self._begun[index].piece(delta.logprobs))
        if self._ids:
            ids = b',"token_ids":' + encode(delta.token_ids)
        return b'"text":%b,"logprobs":%b,"finish_reason":null%b' % (encode(delta.text), logprobs, ids)


class Echo:
    """A prompt as it comes back: its text, and the text of its first token, which has no log-probability."""

    def __init__(self, text: str, first_token: str) -> None:
        self.text = text
        self._first_token = first_token

    def logprobs(self, info: PromptInfo, shape: CompletionLogprobs) -> dict[str, Any]:
        """The prompt's own tokens. A BOS token that is not in the text takes no room in it."""
        shape.offset = 0
        piece = shape.piece(info.logprobs or (), [self._first_token])
        if not self.text.startswith(self._first_token):
            shift = len(self._first_token)
            piece["text_offset"] = [max(0, offset - shift) for offset in piece["text_offset"]]
        shape.offset = len(self.text)
        return piece


def completion_object(
    body: CompletionBody, head: Head, collected: Collected, echoes: Sequence[Echo]
) -> dict[str, Any]:
    """The answer without streaming."""
    answer = head.fields("text_completion")
    answer["choices"] = [_choice(body, collected, index, echoes) for index in range(len(collected.choices))]
    answer["usage"] = collected.usage.fields()
    return answer


def _choice(body: CompletionBody, collected: Collected, index: int, echoes: Sequence[Echo]) -> dict[str, Any]:
    choice = collected.choices[index]
    info = collected.prompts[index // collected.n]
    echo = echoes[index // collected.n] if echoes else None
    fields: dict[str, Any] = {
        "index": index,
        "text": (echo.text if echo else "") + choice.text,
        "logprobs": _logprobs(info, choice.logprobs, echo, body.logprobs),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if info is not None and body.return_token_ids:
        fields["prompt_token_ids"], fields["token_ids"] = info.token_ids, choice.token_ids
    if info is not None and body.prompt_logprobs is not None:
        fields["prompt_logprobs"] = prompt_logprobs(info.logprobs or (), body.prompt_logprobs)
    return fields


def _logprobs(
    info: PromptInfo | None, tokens: Sequence[TokenLogprob], echo: Echo | None, top: int | None
) -> dict[str, Any] | None:
    if top is None:
        return None
    shape = CompletionLogprobs(top)
    if echo is None or info is None or info.logprobs is None:
        shape.offset = len(echo.text) if echo else 0
        return shape.piece(tokens)
    whole = echo.logprobs(info, shape)
    answer = shape.piece(tokens)
    return {name: whole[name] + answer[name] for name in whole}
