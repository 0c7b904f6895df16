"""The scheduling-policy slot. A policy has preferences; the core has the blocks, the budget and the last word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class RequestView(Protocol):
    """What a policy may read of a request. Times are seconds of the monotonic clock."""

    @property
    def priority(self) -> int:
        """Lower runs first; 0 unless the client says otherwise."""
        ...

    @property
    def arrival(self) -> float: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def output_length(self) -> int: ...
    @property
    def computed(self) -> int:
        """Tokens whose keys and values are in the cache."""
        ...

    @property
    def max_tokens(self) -> int: ...
    @property
    def adapter(self) -> str | None: ...
    @property
    def preemptions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LoadView:
    """How full the engine is."""

    now: float
    running: int
    waiting: int
    max_sequences: int
    free_blocks: int
    total_blocks: int
    block_size: int


class SchedulingPolicy(Protocol):
    """Answers are checked by the core: an index out of range or named twice is an error naming the policy."""

    def order(self, requests: Sequence[RequestView], load: LoadView) -> Iterable[int]:
        """Indices of ``requests``, the one to serve first coming first. May be lazy; may leave some out,
        which then wait. Called for the waiting and for the running requests, each in order of arrival."""
        ...

    def victim(self, candidates: Sequence[RequestView], load: LoadView) -> int:
        """Index of the running request to preempt when blocks run out. ``candidates``, in order of arrival, is
        never empty."""
        ...

    def prefill_budget(self, load: LoadView, decodes: int, budget: int) -> int:
        """Of ``budget`` tokens left in this step after ``decodes`` decode tokens, how many prompts may use."""
        ...
