"""The scheduling room: a request as the engine sees it, from arrival to its last token."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from octavo.cache.prefix import extend
from octavo.params import SamplingParams


class Constraint(Protocol):
    """Holds an answer to a form. Kept by the engine, which gives its rows masks before they are sampled."""

    def fits(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens``, from the first on, may be drafted behind the tokens known."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One sequence to complete. Implements :class:`octavo.contracts.scheduling.RequestView`.

    The first group of fields is given by the engine and does not change. The second belongs to the scheduler;
    others may read it.

    ``eos_ids`` tells which of ``stop_ids`` mean "end of text": those leave ``stop_reason`` at ``None``.
    ``arrival`` is in seconds of the monotonic clock. ``root`` is :func:`octavo.cache.prefix.root_hash`.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    root: bytes
    priority: int = 0
    arrival: float = 0.0
    adapter: str | None = None
    adapter_key: int = 0  # which contents its adapter's name stood for when it came; 0: the base model
    stop_ids: frozenset[int] = frozenset()
    eos_ids: frozenset[int] = frozenset()
    seed: int = 0
    bad_word_ids: list[list[int]] = field(default_factory=list)
    constraint: Constraint | None = None
    speculates: bool = True  # whether tokens may be drafted, where the engine has a proposer
    pooling: str = ""  # "last" or "mean": hidden states are pooled; the result stands for its one output token

    output_ids: list[int] = field(default_factory=list, init=False)
    known: int = field(default=0, init=False)  # prompt + output + pending tokens
    pending: int = field(default=0, init=False)  # sampled tokens that are still on the device
    computed: int = field(default=0, init=False)  # tokens whose keys and values are, or are being, computed
    drafts: list[int] = field(default_factory=list, init=False)  # guessed for the coming step; not known
    drafted: int = field(default=0, init=False)  # guessed tokens being verified, behind the computed ones
    guessed: int = field(default=0, init=False)  # tokens that the device has guessed behind the known ones
    ahead: int = field(default=0, init=False)  # tokens behind computed and drafted ones that have blocks already
    limit: int = field(default=0, init=False)  # most tokens of prompt and output together
    row: int = field(default=-1, init=False)  # -1 while waiting
    adapter_slot: int = field(default=0, init=False)  # of its adapter on the device, while it runs
    blocks: list[int] = field(default_factory=list, init=False)
    hashes: list[bytes] = field(default_factory=list, init=False)  # of its first full blocks, as far as needed
    published: int = field(default=0, init=False)  # blocks that went through the pool's `publish`
    granted: int = field(default=0, init=False)  # number of the last step that computes something for it
    scored: int = field(default=0, init=False)  # positions whose prompt log-probabilities were delivered
    cached_tokens: int = field(default=0, init=False)  # prompt tokens found in the prefix cache at first admission
    preemptions: int = field(default=0, init=False)
    finish_reason: str | None = field(default=None, init=False)  # stop, length, abort or error
    stop_reason: int | None = field(default=None, init=False)  # the token of `stop_token_ids` that ended it

    def __post_init__(self) -> None:
        self.known = len(self.prompt_ids)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def output_length(self) -> int:
        """Tokens generated, without those that are still on the device."""
        return len(self.output_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids at positions ``[start, stop)``, as far as the host knows them."""
        length = len(self.prompt_ids)
        if stop <= length:
            return self.prompt_ids[start:stop]
        if start >= length:
            return self.output_ids[start - length : stop - length]
        return self.prompt_ids[start:] + self.output_ids[: stop - length]

    def block_hashes(self, count: int, block_size: int) -> list[bytes]:
        """Chained hashes of at least the first ``count`` blocks, whose tokens the host must know."""
        hashes = self.hashes
        for index in range(len(hashes), count):
            parent = hashes[-1] if hashes else self.root
            hashes.append(extend(parent, self.tokens(index * block_size, (index + 1) * block_size)))
        return hashes


def insert(line: list[Request], request: Request) -> None:
    """Put ``request`` into ``line``, which is in order of arrival."""
    if not line or _key(line[-1]) < _key(request):
        line.append(request)
    else:
        insort(line, request, key=_key)


def remove(line: list[Request], request: Request) -> None:
    """Take ``request`` out of ``line``. Raises :class:`ValueError` if it is not there."""
    index = bisect_left(line, _key(request), key=_key)
    if index == len(line) or line[index] is not request:
        raise ValueError(f"Request {request.id} is not in this line.")
    del line[index]


def _key(request: Request) -> tuple[float, int]:
    return request.arrival, request.id
