"""What ``LLM.generate`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.contracts.api import TokenLogprob


@dataclass(slots=True)
class CompletionOutput:
    """One answer. ``finish_reason`` is ``stop``, ``length`` or ``abort``; ``stop_reason`` the stop string or
    token id that ended it, ``None`` for end of text. ``logprobs`` has one entry a token, if asked for."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds from the request's arrival; ``None`` where it never happened. Of ``drafted_tokens`` guesses
    ``accepted_tokens`` were right."""

    queue_time: float | None
    time_to_first_token: float | None
    duration: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(slots=True)
class RequestOutput:
    """One prompt and its answers, ``n`` of them, in order.

    ``prompt`` is ``None`` where token ids were given. ``prompt_logprobs`` has one entry a prompt token, if asked
    for; the first is ``None``. ``num_cached_tokens`` of the prompt came from the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finished: bool = False
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
