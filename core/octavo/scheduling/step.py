"""One step under construction, and what is made of it: the plan for the executor, the progress for clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from octavo.contracts.executor import RowLogprobs, RowStart, StepPlan
from octavo.scheduling.request import Request

if TYPE_CHECKING:
    import numpy as np


@dataclass(slots=True)
class Scheduled:
    """A plan, and the requests that its rows stand for (aligned with ``plan.rows``)."""

    plan: StepPlan
    requests: list[Request]


class Progress(msgspec.Struct, gc=False):
    """What one step brought one request.

    ``token_ids`` may be empty where only prompt log-probabilities came or the request failed. ``logprobs`` is
    aligned with ``token_ids``. Of ``drafted`` tokens ``accepted`` were right. ``prompt_logprobs`` continues those
    delivered before, without gap or overlap. ``first``: these are the request's first tokens. ``error`` says why
    ``finish_reason`` is ``"error"``. ``pooled`` float32 [hidden_size] is the result of a request that pools.
    """

    request: Request
    token_ids: list[int]
    logprobs: list[RowLogprobs] | None = None
    prompt_logprobs: list[RowLogprobs] | None = None
    finish_reason: str | None = None
    first: bool = False
    error: str | None = None
    pooled: np.ndarray | None = None
    drafted: int = 0
    accepted: int = 0


class StepBuilder:
    """Collects the grants of one step."""

    __slots__ = (
        "_blocks",
        "_chunk_counts",
        "_chunk_positions",
        "_chunk_samples",
        "_chunks",
        "_drafts",
        "_masked",
        "_single_samples",
        "_starts",
        "budget",
        "decoding",
        "number",
        "preempted",
        "prompt_left",
        "singles",
    )

    def __init__(self, number: int, budget: int) -> None:
        self.number = number
        self.budget = budget  # tokens not handed out yet
        self.prompt_left = -1  # the part of it open to prompts; -1: the policy was not asked yet
        self.preempted = False
        self.decoding = 0  # tokens of decodes, their drafts included
        self.singles: list[Request] = []  # rows of one token: they come first in a plan
        self._single_samples: list[bool] = []
        self._chunks: list[Request] = []
        self._chunk_samples: list[bool] = []
        self._chunk_counts: list[int] = []
        self._chunk_positions: list[int] = []
        self._masked = False  # whether a row that samples has a constraint
        self._drafts: dict[int, list[int]] = {}  # by index into the chunks
        self._starts: list[RowStart] = []
        self._blocks: list[tuple[int, int, list[int]]] = []

    def start(self, request: Request) -> None:
        """``request`` has got a row, and the first entries of its block table."""
        self._starts.append(
            RowStart(
                row=request.row,
                tokens=request.prompt_ids + request.output_ids,
                prompt_length=len(request.prompt_ids),
                params=request.params,
                seed=request.seed,
                stop_ids=sorted(request.stop_ids),
                bad_word_ids=request.bad_word_ids,
                adapter_slot=request.adapter_slot,
                pooling=request.pooling,
            )
        )
        self._blocks.append((request.row, 0, list(request.blocks)))

    def extend(self, request: Request, blocks: list[int]) -> None:
        """``blocks`` are about to be appended to the request's block table."""
        self._blocks.append((request.row, len(request.blocks), blocks))

    def grant(self, request: Request, count: int, sample: bool, drafts: Sequence[int] = ()) -> None:
        """Compute ``count`` tokens of ``request``, which ``request.computed`` includes already, and ``drafts``."""
        tokens = count + len(drafts)
        self.budget -= tokens
        self._masked |= sample and request.constraint is not None
        if tokens == 1:
            self.decoding += 1
            self.singles.append(request)
            self._single_samples.append(sample)
            return
        if drafts:
            self.decoding += tokens
            self._drafts[len(self._chunks)] = list(drafts)
        self._chunks.append(request)
        self._chunk_samples.append(sample)
        self._chunk_counts.append(tokens)
        self._chunk_positions.append(request.computed - count)

    def build(
        self, ends: list[int], adapters: list[tuple[int, int]], guess: int, block_size: int
    ) -> Scheduled | None:
        """The finished plan, or ``None`` when nothing was granted. ``guess`` is its own."""
        requests = self.singles + self._chunks
        if not requests:
            return None
        samples = self._single_samples + self._chunk_samples
        plan = StepPlan(
            number=self.number,
            ends=ends,
            starts=self._starts,
            blocks=self._blocks,
            rows=[request.row for request in requests],
            positions=[request.computed - 1 for request in self.singles] + self._chunk_positions,
            counts=[1] * len(self.singles) + self._chunk_counts,
            samples=samples,
            adapters=adapters,
            drafts={len(self.singles) + index: drafts for index, drafts in self._drafts.items()},
            guess=guess,
            room=[len(request.blocks) * block_size for request in requests] if guess else [],
        )
        if self._masked:
            plan.masked = [
                index
                for index, (request, sample) in enumerate(zip(requests, samples, strict=True))
                if sample and request.constraint is not None
            ]
        return Scheduled(plan, requests)
