"""The API-surface slot, and the client through which a surface reaches the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import numpy as np
    from fastapi import APIRouter

    from octavo.contracts.lora import ServedAdapter
    from octavo.params import SamplingParams
    from octavo.records import ToolParserRecord


@dataclass(slots=True)
class TokenLogprob:
    """A token and its natural-log probability. ``token`` is its text, ``bytes`` its UTF-8 (may be partial)."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    rank: int
    top: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class PromptInfo:
    """What became of a prompt. ``logprobs`` has one entry a token; the first is ``None`` (nothing before it)."""

    token_ids: list[int]
    cached_tokens: int
    logprobs: list[TokenLogprob | None] | None
    queue_time: float | None = None  # seconds from arrival to being scheduled


@dataclass(slots=True)
class Delta:
    """A piece of one answer. ``index`` tells which of ``n`` it belongs to.

    The first delta of a request carries ``prompt``. The last of each index has ``finish_reason``: ``stop``,
    ``length`` or ``abort``; ``stop_reason`` is then the stop string or token id, or ``None`` for end of text.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt: PromptInfo | None = None


POOLINGS: Final = ("last", "mean")
"""How the hidden states of a prompt become one vector: that of the last token, or the mean over all."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A prompt as a vector: float32 [size]."""

    values: np.ndarray
    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An entry of the model list: the base model, or an adapter with its parent."""

    id: str
    root: str
    parent: str | None
    max_length: int
    created: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Figures of the engine, as of its last report. Counters count from the start."""

    running: int = 0
    waiting: int = 0
    total_blocks: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    drafts: int = 0  # drafts verified
    drafted: int = 0  # tokens in them
    accepted: int = 0  # tokens of them that were right
    accepted_at: tuple[int, ...] = ()  # by place in the draft
    speculation_off: str = ""  # why the proposer was switched off


@dataclass(frozen=True, slots=True)
class Health:
    """``alive``: the loop beats. ``ready``: new requests are taken. ``heartbeat_age`` in seconds."""

    alive: bool
    ready: bool
    heartbeat_age: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """What ``octavo_request_finished`` receives. Times are seconds; ``None`` where it never happened."""

    request_id: str
    adapter: str | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    queue_time: float | None
    time_to_first_token: float | None
    duration: float
    drafted_tokens: int = 0  # guessed ahead and verified
    accepted_tokens: int = 0  # of them right


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as ``octavo_select_adapter`` sees it: before it is admitted.

    ``headers`` are lower-cased HTTP headers, empty for Python callers. ``model`` is the name the client used.
    """

    model: str | None
    prompt_length: int
    headers: Mapping[str, str]
    user: str | None = None


class EngineClient(Protocol):
    """What a surface may do. Lives in the API process; never touches the model.

    Surfaces are built while the engine starts: the properties may be read once a request is there, not before.
    """

    @property
    def model_name(self) -> str: ...
    @property
    def max_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def has_chat_template(self) -> bool: ...

    @property
    def chat_template(self) -> str:
        """Jinja source of the chat template for requests with tools; empty where there is none."""
        ...

    @property
    def tool_parsers(self) -> Mapping[str, ToolParserRecord]:
        """What plugins contribute through ``octavo_tool_parsers``, by name. Known from the start."""
        ...

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        """From the checkpoint's generation_config.json: temperature, top_p … under the request's own values."""
        ...

    def generate(
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
        """Answer a prompt. Closing the iterator aborts the request within a step.

        ``request_id`` is only a label for logs. Raises :class:`octavo.errors.RequestError` for anything wrong
        with the request, before the first delta.
        """
        ...

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
        """The hidden states of the model's last layer over a prompt, pooled: one of ``POOLINGS``, or what the
        checkpoint says, else ``last``. The first ``dimensions`` of them; scaled to length 1 if ``normalize``.

        Cancelling the call aborts the request. Raises :class:`octavo.errors.RequestError` like ``generate``.
        """
        ...

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenise, off the event loop. Refuses text that can't fit the context before tokenising it."""
        ...

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids; raises :class:`octavo.errors.RequestError` for ids out of range."""
        ...

    async def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text, spaces included; unfinished UTF-8 becomes U+FFFD."""
        ...

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages through the sandboxed chat template, to token ids."""
        ...

    def models(self) -> list[ServedModel]: ...

    def resolves(self, name: str) -> bool:
        """Whether an adapter that is not among ``models`` would be found and loaded by asking for it."""
        ...

    def stats(self) -> EngineStats: ...
    def health(self) -> Health: ...

    async def reset_prefix_cache(self) -> None:
        """Forget cached blocks that no request uses."""
        ...

    async def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> ServedAdapter:
        """Serve the adapter in folder ``path`` as ``name``. Raises :class:`octavo.errors.RequestError`."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter; returns when its last one has ended."""
        ...

    def drain(self, reason: str = "draining") -> None:
        """Be unready, so that surfaces refuse new requests; those under way go on."""
        ...

    def resume(self) -> None:
        """Undo ``drain``."""
        ...


class ApiSurface(Protocol):
    """Routes served under ``prefix``. Two surfaces with one route are a start-up error."""

    prefix: str

    def router(self) -> APIRouter: ...
