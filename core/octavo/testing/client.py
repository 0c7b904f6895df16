"""A client without an engine, for tests of API surfaces: answers are scripted, tokens are UTF-8 bytes."""

from __future__ import annotations

import asyncio
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from octavo.contracts.api import (
    Arrival,
    Delta,
    Embedding,
    EngineStats,
    Health,
    PromptInfo,
    ServedModel,
    TokenLogprob,
)
from octavo.contracts.lora import ServedAdapter
from octavo.errors import NotFoundError, RequestError
from octavo.params import SamplingParams
from octavo.records import ToolParserRecord

BOS: Final = 256
EOS: Final = 257
VOCAB_SIZE: Final = 258


def default_answer(prompt: str, index: int) -> str:
    """What :class:`ScriptedClient` says unless told otherwise."""
    return f"Answer {index}: {prompt[-24:]}"


@dataclass(slots=True)
class Call:
    """What ``generate`` was called with."""

    prompt: list[int]
    params: SamplingParams
    request_id: str | None
    adapter: str | None
    priority: int
    cache_salt: str | None
    arrival: Arrival | None


@dataclass(kw_only=True)
class ScriptedClient:
    """Implements :class:`octavo.contracts.api.EngineClient`. ``answer(prompt_text, index)`` is what it says.

    ``tokens_per_delta`` bytes come in one delta, ``delay`` seconds apart. ``fail_after`` deltas it raises
    ``failure``. ``opening`` stands at the end of rendered prompts; ``rendered`` keeps what was rendered: messages,
    tools, options. ``calls`` and ``aborted`` (request ids) tell a test what happened.
    """

    model_name: str = "scripted"
    max_length: int = 4096
    vocab_size: int = VOCAB_SIZE
    has_chat_template: bool = True
    default_sampling: Mapping[str, Any] = field(default_factory=dict)
    answer: Callable[[str, int], str] = default_answer
    tokens_per_delta: int = 3
    delay: float = 0.0
    fail_after: int = 0
    failure: Exception | None = None
    adapters: tuple[str, ...] = ()
    chat_template: str = ""
    tool_parsers: Mapping[str, ToolParserRecord] = field(default_factory=dict)
    rendered: list[tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], Mapping[str, Any]]] = field(
        default_factory=list
    )
    opening: str = ""
    state: Health = field(default_factory=lambda: Health(alive=True, ready=True, heartbeat_age=0.01))
    figures: EngineStats = field(default_factory=lambda: EngineStats(total_blocks=100))
    calls: list[Call] = field(default_factory=list)
    aborted: list[str | None] = field(default_factory=list)
    resets: int = 0

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival: Arrival | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[Delta]:
        """The scripted answers, interleaved."""
        ids = await self._ids(prompt, add_special_tokens)
        self._check(ids, params)
        self.calls.append(Call(ids, params, request_id, adapter, priority, cache_salt, arrival))
        answers = [self._deltas(index, ids, params) for index in range(params.n)]
        finished, sent = False, 0
        try:
            for turn in range(max(map(len, answers))):
                for deltas in answers:
                    if turn >= len(deltas):
                        continue
                    if self.failure is not None and sent >= self.fail_after:
                        raise self.failure
                    await asyncio.sleep(self.delay)
                    if sent == 0:
                        deltas[turn].prompt = self._prompt_info(ids, params)
                    yield deltas[turn]
                    sent += 1
            finished = True
        finally:
            if not finished:
                self.aborted.append(request_id)

    async def embed(
        self,
        prompt: str | Sequence[int],
        *,
        pooling: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        request_id: str | None = None,
        adapter: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival: Arrival | None = None,
        add_special_tokens: bool = True,
    ) -> Embedding:
        """The prompt's length, first and last token, and 1, scaled as asked for."""
        ids = await self._ids(prompt, add_special_tokens)
        params = SamplingParams(max_tokens=1)
        self._check(ids, params)
        if dimensions is not None and not 1 <= dimensions <= 4:
            raise RequestError("dimensions must be between 1 and 4.", param="dimensions")
        self.calls.append(Call(ids, params, request_id, adapter, priority, cache_salt, arrival))
        await asyncio.sleep(self.delay)
        values = np.array([len(ids), ids[0], ids[-1], 1], np.float32)[:dimensions]
        return Embedding(values / np.linalg.norm(values) if normalize else values, len(ids))

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """BOS and the UTF-8 bytes."""
        return [*([BOS] if add_special_tokens else []), *text.encode()]

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of bytes; of special tokens their name."""
        for token in token_ids:
            if not 0 <= token < VOCAB_SIZE:
                raise RequestError(f"token id {token} is out of range.", param="prompt")
        return text_of(list(token_ids), skip_special_tokens)

    async def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """One by one."""
        return [await self.decode([token]) for token in token_ids]

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """``role: content`` a line."""
        self.rendered.append((list(messages), list(tools or ()), template_options or {}))
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        end = "" if continue_final_message else "\n"
        return [
            BOS,
            *("\n".join(lines) + end + ("assistant: " + self.opening if add_generation_prompt else "")).encode(),
        ]

    def models(self) -> list[ServedModel]:
        """The base model and the adapters."""
        base = ServedModel(self.model_name, "/models/scripted", None, self.max_length, 1)
        return [base, *(ServedModel(name, name, self.model_name, self.max_length, 2) for name in self.adapters)]

    def resolves(self, name: str) -> bool:
        """Nothing is ever looked up."""
        return False

    def stats(self) -> EngineStats:
        """What ``figures`` says."""
        return self.figures

    def health(self) -> Health:
        """What ``state`` says."""
        return self.state

    async def reset_prefix_cache(self) -> None:
        """Only counted."""
        self.resets += 1

    async def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> ServedAdapter:
        """Whatever the path is."""
        self.adapters = (*self.adapters, name)
        return ServedAdapter(name=name, path=path, digest="d", rank=8, nbytes=1, pinned=pinned)

    async def unload_adapter(self, name: str) -> None:
        """Raises NotFoundError for a name that is not served."""
        if name not in self.adapters:
            raise NotFoundError(f"there is no adapter {name!r} here.", param="name")
        self.adapters = tuple(one for one in self.adapters if one != name)

    def drain(self, reason: str = "draining") -> None:
        """Changes ``state``."""
        self.state = replace(self.state, ready=False, reason=reason)

    def resume(self) -> None:
        """Changes ``state``."""
        self.state = replace(self.state, ready=True, reason="")

    async def _ids(self, prompt: str | Sequence[int], add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            return await self.encode(prompt, add_special_tokens=add_special_tokens)
        return [*prompt]

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        params.check_vocabulary(VOCAB_SIZE)
        for token in ids:
            if not 0 <= token < VOCAB_SIZE:
                raise RequestError(f"token id {token} is out of range.", param="prompt")
        if not ids:
            raise RequestError("the prompt is empty.", param="prompt")
        if len(ids) + (params.max_tokens or 1) > self.max_length:
            raise RequestError(
                f"this model's maximum context length is {self.max_length} tokens.",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _deltas(self, index: int, prompt: list[int], params: SamplingParams) -> list[Delta]:
        ids, shown, reason, stop_reason = self._tokens(index, prompt, params)
        decoder = getincrementaldecoder("utf-8")("replace")
        deltas = []
        for start in range(0, len(ids), self.tokens_per_delta):
            piece = ids[start : start + self.tokens_per_delta]
            text = decoder.decode(bytes(piece[: max(0, shown - start)]))
            logprobs = (
                [_logprob(token, params.logprobs) for token in piece] if params.logprobs is not None else None
            )
            deltas.append(Delta(index, text, piece, logprobs))
        deltas[-1].text += decoder.decode(b"", True)
        deltas[-1].finish_reason, deltas[-1].stop_reason = reason, stop_reason
        return deltas

    def _tokens(
        self, index: int, prompt: list[int], params: SamplingParams
    ) -> tuple[list[int], int, str, str | None]:
        """Token ids, how many of them have text to show, and why they end."""
        text, stop_reason = self.answer(text_of(prompt, True), index), None
        shown = len(text.encode())
        for stop in params.stop:
            cut = text.find(stop)
            if cut >= 0:
                text, stop_reason = text[: cut + len(stop)], stop
                shown = len((text if params.include_stop_str_in_output else text[:cut]).encode())
        ids = [*text.encode(), *([] if stop_reason else [EOS])]
        if params.max_tokens is not None and len(ids) > params.max_tokens:
            return ids[: params.max_tokens], min(shown, params.max_tokens), "length", None
        return ids, shown, "stop", stop_reason

    def _prompt_info(self, ids: list[int], params: SamplingParams) -> PromptInfo:
        top = params.prompt_logprobs
        logprobs = None if top is None else [None, *(_logprob(token, top) for token in ids[1:])]
        return PromptInfo(ids, 16 * (len(ids) // 16), logprobs, queue_time=0.001)


def text_of(ids: list[int], skip_special_tokens: bool) -> str:
    """The text of token ids; a broken character is U+FFFD."""
    names = {BOS: b"<bos>", EOS: b"<eos>"}
    parts = [bytes([token]) if token < 256 else b"" if skip_special_tokens else names[token] for token in ids]
    return b"".join(parts).decode(errors="replace")


def _logprob(token: int, top: int) -> TokenLogprob:
    main = _entry(token, -0.25, 1)
    main.top = [_entry((token + step) % 256, -0.25 - step, step + 1) for step in range(top)]
    return main


def _entry(token: int, logprob: float, rank: int) -> TokenLogprob:
    text = text_of([token], False)
    return TokenLogprob(token, text, bytes([token]) if token < 256 else text.encode(), logprob, rank)
