"""Guessing on the device: right behind a sampled step, before the host knows what was sampled.

A guess never reaches an answer unverified, so whatever goes wrong here costs guesses only. Tokens out of range are
replaced on the device; the host hears of them with the next step's result, and asks for no more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from torch import Tensor

from octavo.contracts.executor import GUESSED, StepPlan
from octavo.contracts.proposer import Computed, DeviceProposer
from octavo.run.guess_ends import GuessEnds, Place
from octavo.run.guess_graphs import GuessGraphs
from octavo.run.step import StepInputs, build_step
from octavo.run.upload import upload

_log = logging.getLogger("octavo.speculation")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a step sampled. ``last`` int64 [n]: for each sampling row, which of the sampled positions was its last
    right one; ``None``: every row has one. ``tokens`` int64: sampled at each position; ``rows`` int64 [n]."""

    rows: Tensor
    tokens: Tensor
    last: Tensor | None


class NoGuesser:
    """Stands in where the device guesses nothing."""

    tap_layers: Sequence[int] = ()
    failed: str = ""

    def begin(self, plan: StepPlan, known: bool) -> StepPlan:
        """The plan, unchanged."""
        return plan

    def follow(
        self, plan: StepPlan, step: StepInputs, hidden: Tensor, taps: Sequence[Tensor], sampling: Sampling | None
    ) -> None:
        """Nothing follows."""


@dataclass(slots=True)
class Guesser(NoGuesser):
    """Runs a device proposer. ``failed`` says why it is not run any more."""

    proposer: DeviceProposer
    place: Place
    graphs: GuessGraphs | None = None
    failed: str = ""
    tap_layers: Sequence[int] = ()
    _arriving: _Arriving | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tap_layers = tuple(self.proposer.tap_layers)

    def begin(self, plan: StepPlan, known: bool) -> StepPlan:
        """A step is about to be launched; the plan, with the tokens of guesses filled in where the host must know
        them. That waits for the device, unless they have come long ago."""
        if plan.starts:
            self.place.noise.admit(plan.starts)
        if not known or not plan.drafts:
            return plan
        guesses = self.place.rows.guesses.cpu().numpy()
        drafts = {
            index: guesses[plan.rows[index], : len(draft)].tolist() if GUESSED in draft else draft
            for index, draft in plan.drafts.items()
        }
        return msgspec.structs.replace(plan, drafts=drafts)

    def follow(
        self, plan: StepPlan, step: StepInputs, hidden: Tensor, taps: Sequence[Tensor], sampling: Sampling | None
    ) -> None:
        """The step was sampled: let the proposer see it, and guess what comes next."""
        self._hear()
        prompts = plan.num_tokens > len(plan.rows) + sum(map(len, plan.drafts.values()))
        if self.failed or not (plan.guess or prompts):
            return
        try:
            if plan.behind:
                self._catch_up(plan)
            carried = self.proposer.feed(self._computed(step, hidden, taps, sampling, prompts))
            if plan.guess and sampling is not None:
                ends = self._ends(plan, step, sampling, carried)
                runs = self.proposer if self.graphs is None else self.graphs
                self._keep(ends.numbers, runs.propose(ends, plan.guess), plan.guess)
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}", error)

    def _catch_up(self, plan: StepPlan) -> None:
        missed = sorted((len(tokens), position, row) for row, (position, tokens) in plan.behind.items())
        counts, positions, rows = (list(column) for column in zip(*missed, strict=True))
        part = StepPlan(plan.number, [], [], [], rows, positions, counts, [False] * len(rows))
        place = self.place
        step = build_step(part, place.rows, place.block_size, place.rows.last_tokens.device)
        self.proposer.catch_up(step.token_ids, step.batch)

    def _computed(
        self,
        step: StepInputs,
        hidden: Tensor,
        taps: Sequence[Tensor],
        sampling: Sampling | None,
        prompts: bool,
    ) -> Computed:
        return Computed(step.token_ids, self._next_ids(step, sampling), step.batch, hidden, taps, prompts)

    def _next_ids(self, step: StepInputs, sampling: Sampling | None) -> Tensor:
        """The token behind each of the step's: sampled, or the host's."""
        device = step.token_ids.device
        if step.known_next is None:
            known = torch.zeros(step.batch.num_tokens, dtype=torch.int64, device=device)
        else:
            (known,) = upload((step.known_next,), device)
        return known if sampling is None else known.index_copy_(0, step.sampled_tokens, sampling.tokens)

    def _ends(self, plan: StepPlan, step: StepInputs, sampling: Sampling, carried: Tensor | None) -> GuessEnds:
        last = sampling.last
        at = step.sampled_tokens if last is None else step.sampled_tokens[last]
        newest = sampling.tokens if last is None else sampling.tokens[last]
        index = np.flatnonzero(plan.samples)
        (room,) = upload((np.asarray(plan.room, np.int64)[index],), at.device)
        return GuessEnds(
            place=self.place,
            numbers=sampling.rows,
            positions=step.batch.positions[at] + 1,
            tokens=torch.stack([step.token_ids[at], newest], dim=1),
            carried=None if carried is None else carried[at],
            room=room,
            drawn=self.place.noise.wanted(plan.rows),
        )

    def _keep(self, numbers: Tensor, guesses: Tensor, count: int) -> None:
        wanted = (len(numbers), count)
        if not isinstance(guesses, Tensor) or guesses.dtype != torch.int64 or tuple(guesses.shape) != wanted:
            raise ValueError(f"propose must return int64 {list(wanted)}, not {_kind(guesses)}")
        wrong = (guesses < 0) | (guesses >= self.place.vocab_size)
        self.place.rows.guesses[:, :count].index_copy_(0, numbers, guesses.masked_fill(wrong, 0))
        self._arriving = _Arriving.send(wrong.any())

    def _hear(self) -> None:
        """Whether the last guesses were tokens; by now the host has waited for a step behind them."""
        if self._arriving is not None and self._arriving.here():
            if self._arriving.found() and not self.failed:
                self._fail(f"a guessed token is not between 0 and {self.place.vocab_size - 1}", None)
            self._arriving = None

    def _fail(self, reason: str, error: Exception | None) -> None:
        self.failed = reason
        _log.warning("guessing on the device failed: %s", reason, exc_info=error)


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A flag on its way to the host."""

    flag: Tensor
    event: torch.cuda.Event | None

    @staticmethod
    def send(flag: Tensor) -> _Arriving:
        if not flag.is_cuda:
            return _Arriving(flag, None)
        sent = flag.to("cpu", non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return _Arriving(sent, event)

    def here(self) -> bool:
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def found(self) -> bool:
        return bool(self.flag)


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
