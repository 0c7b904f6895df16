"""Between scheduler and proposer: who gets a draft and how long, and every answer checked.

Whatever is wrong with a proposer costs its drafts and nothing else: it is switched off, and requests go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.contracts.executor import StepResult
from octavo.contracts.proposer import Draft, DraftRow, Proposer
from octavo.scheduling.draft_length import Acceptance, StepTimes
from octavo.scheduling.request import Request
from octavo.scheduling.speculating import LOOK, MOST_POSITIONS, REST, DraftCounts, room_for_drafts, switched_off
from octavo.scheduling.step import Scheduled, StepBuilder


class Speculator:
    """Puts a proposer's drafts into requests and learns from what becomes of them.

    Implements :class:`octavo.scheduling.speculating.Speculating`. ``fixed``: always as much as may be.
    """

    def __init__(
        self, proposer: Proposer, name: str, vocab_size: int, max_sequences: int, fixed: bool = False
    ) -> None:
        self.off = ""
        self.guess = 0
        self._idle = 0  # steps since the last draft
        self._proposer, self._name = proposer, name
        self._vocab_size, self._fixed = vocab_size, fixed
        self._positions = max(max_sequences, MOST_POSITIONS)
        self._told: dict[int, int] = {}  # by reserved row: tokens that the proposer knows
        self._acceptance: dict[int, Acceptance] = {}  # by request id
        self._times = StepTimes()
        self._timed: tuple[int, int, float] | None = None  # the step being timed: number, tokens, start
        self._most = self._longest()
        self.counts = DraftCounts(accepted_at=[0] * self._most)

    @property
    def resting(self) -> bool:
        """There was no draft for some time; a look is taken now and then."""
        return bool(self.off) or (self._idle >= REST and self._idle % REST >= LOOK)

    def draft(self, running: Sequence[Request], budget: int) -> None:
        for request in running:
            request.drafts = []
        if self.off:
            return
        self._idle += 1
        decodes, room = room_for_drafts(running, budget, self._positions)
        wanted = self._lengths(decodes, room) if room > 0 else []
        if not wanted:
            return
        try:
            rows = [DraftRow(request.row, self._fresh(request), limit) for request, limit in wanted]
            drafts = self._checked(self._proposer.propose(rows), rows)
        except Exception as error:
            self._switch_off(f"{type(error).__name__}: {error}", error)
            return
        for (request, _), tokens in zip(wanted, drafts, strict=True):
            fitting = len(tokens) if request.constraint is None else request.constraint.fits(tokens)
            request.drafts = tokens[:fitting]
            if request.drafts:
                self._idle = 0

    def released(self, rows: Sequence[int]) -> None:
        """Rows that were never drafted for are passed over."""
        for row in rows:
            if self._told.pop(row, None) is None or self.off:
                continue
            try:
                self._proposer.release(row)
            except Exception as error:
                self._switch_off(f"release: {type(error).__name__}: {error}", error)

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        self.counts.add(drafted, accepted)
        self._acceptance[request.id].observe(drafted, accepted)

    def ended(self, request: Request) -> None:
        self._acceptance.pop(request.id, None)

    def launching(self, step: StepBuilder, scheduled: Scheduled, now: float) -> None:
        """Steps of decodes and drafts alone are timed."""
        plan = scheduled.plan
        if step.decoding == plan.num_tokens:
            self._timed = (plan.number, step.decoding, now)

    def finished(self, result: StepResult, now: float) -> None:
        """Steps that overlap are not timed."""
        timed, self._timed = self._timed, None
        if timed is not None and timed[0] == result.number and now > timed[2]:
            self._times.observe(timed[1], now - timed[2])

    def _lengths(self, decodes: Sequence[Request], room: int) -> list[tuple[Request, int]]:
        share = self._times.share(len(decodes))
        wanted = []
        for request in decodes:
            most = min(self._most, room, request.limit - request.known - 1)
            if not request.speculates or most < 1:
                continue
            acceptance = self._acceptance.setdefault(request.id, Acceptance())
            length = most if self._fixed else acceptance.length(share, most)
            if length:
                room -= length
                wanted.append((request, length))
            else:
                acceptance.rest()
        return wanted

    def _fresh(self, request: Request) -> Sequence[int]:
        row, told = request.row, self._told.get(request.row)
        self._told[row] = request.known
        if told is not None:
            return request.tokens(told, request.known)
        self._proposer.reserve(row, request.tokens(0, request.known))
        return ()

    def _checked(self, draft: Draft, rows: Sequence[DraftRow]) -> list[list[int]]:
        tokens, lengths = draft.tokens, draft.lengths
        count = len(rows)
        if not (isinstance(tokens, np.ndarray) and tokens.ndim == 2 and len(tokens) == count):
            raise ValueError(f"tokens must be an array [{count}, width], not {_shape(tokens)}")
        if not (isinstance(lengths, np.ndarray) and lengths.shape == (count,)):
            raise ValueError(f"lengths must be an array [{count}], not {_shape(lengths)}")
        if tokens.dtype.kind not in "iu" or lengths.dtype.kind not in "iu":
            raise ValueError(f"tokens and lengths must be integers, not {tokens.dtype} and {lengths.dtype}")
        answers = []
        for row, ids, length in zip(rows, tokens.tolist(), lengths.tolist(), strict=True):
            if not 0 <= length <= min(row.limit, len(ids)):
                raise ValueError(f"a draft of {length} tokens, where {min(row.limit, len(ids))} were the most")
            drafted = ids[:length]
            if drafted and not (min(drafted) >= 0 and max(drafted) < self._vocab_size):
                raise ValueError(f"a drafted token is not between 0 and {self._vocab_size - 1}: {drafted}")
            answers.append(drafted)
        return answers

    def _longest(self) -> int:
        most = self._proposer.max_tokens
        if isinstance(most, int) and most >= 1:
            return most
        self._switch_off(f"max_tokens must be an integer from 1 up, not {most!r}", None)
        return 1

    def _switch_off(self, reason: str, error: Exception | None) -> None:
        self.off = switched_off(self._name, reason, error)


def _shape(value: object) -> str:
    return f"{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
