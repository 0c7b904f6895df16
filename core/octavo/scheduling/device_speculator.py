"""Speculation where the device guesses: how many tokens, for whom, and what it costs.

The host never sees a guess before it is verified. It knows only how many there are, which it asked for itself one
step before: behind every row that samples, the same number, so that steps stay uniform. Whatever is wrong with a
proposer costs its guesses and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octavo.contracts.executor import GUESSED, StepResult
from octavo.scheduling.draft_length import Acceptance, GuessLength
from octavo.scheduling.request import Request
from octavo.scheduling.speculating import MOST_POSITIONS, DraftCounts, room_for_drafts, switched_off
from octavo.scheduling.step import Scheduled, StepBuilder

_ALL: Final = 1 << 62  # tokens that the proposer has seen: all that will be computed before the next step
_MIXED: Final = -1


@dataclass(frozen=True, slots=True)
class _Timed:
    """A step: its number, what it told the device to guess, and how long its own guesses were."""

    number: int
    rows: int
    length: int  # -1 where rows differ, or prompts were computed
    guess: int  # -1 where the proposer has more to do than that


class DeviceSpeculator:
    """Turns what the device has guessed into drafts, and decides how much it guesses next.

    Implements :class:`octavo.scheduling.speculating.Speculating`. ``fixed``: always guess as much as may be.
    """

    def __init__(
        self, name: str, longest: int, max_sequences: int, max_batch_tokens: int, fixed: bool = False
    ) -> None:
        self.off = ""
        self.guess = 0
        self.resting = False
        self.counts = DraftCounts(accepted_at=[0] * longest)
        self._name, self._longest, self._fixed = name, longest, fixed
        self._positions = max(max_sequences, MOST_POSITIONS)
        self._acceptance: dict[int, Acceptance] = {}  # by request id
        self._length = GuessLength()
        self._fed: dict[int, int] = {}  # by row: tokens of it that the proposer has seen
        self._catching = max_batch_tokens
        self._launched: dict[int, _Timed] = {}  # by number: steps in flight
        self._before: tuple[int, int, float] | None = None  # the step before: number, its guess, when it ended

    def draft(self, running: Sequence[Request], budget: int) -> None:
        decodes, room = room_for_drafts(running, budget, self._positions)
        most = 0 if self.off or not decodes else max(0, room) // len(decodes)
        for request in running:
            request.drafts = []
        for request in decodes:
            length = min(request.guessed, most, request.limit - request.known - 1)
            if _guessable(request) and length > 0:
                request.drafts = [GUESSED] * length
        wanted = 0 if self.off else self._choose(running)
        self.resting = wanted == 0 and not any(request.guessed for request in running)
        pending = any(
            request.pending for request in running
        )  # its end is not known: the rest ends with the next step
        self.guess = 0 if pending else wanted

    def released(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._fed.pop(row, None)

    def launching(self, step: StepBuilder, scheduled: Scheduled, now: float) -> None:
        plan = scheduled.plan
        prompts = step.decoding < plan.num_tokens
        lengths = {len(plan.drafts.get(index, ())) for index in range(len(plan.rows))}
        length = lengths.pop() if len(lengths) == 1 and not prompts else _MIXED
        self._catch_up(scheduled, prompts)
        timed = _Timed(plan.number, len(plan.rows), length, _MIXED if plan.behind else plan.guess)
        self._launched[plan.number] = timed

    def finished(self, result: StepResult, now: float) -> None:
        """A step is timed from the end of the one before, if that guessed what this one verified."""
        if result.guessing_failed and not self.off:
            self.off = switched_off(self._name, result.guessing_failed)
        last, before = self._launched.pop(result.number), self._before
        self._before = (last.number, last.guess, now)
        if before is not None and before[:2] == (last.number - 1, last.length) and now > before[2]:
            self._length.observe(last.rows, last.length, now - before[2])

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        self.counts.add(drafted, accepted)
        self._acceptance.setdefault(request.id, Acceptance()).observe(drafted, accepted)

    def ended(self, request: Request) -> None:
        self._acceptance.pop(request.id, None)

    def _catch_up(self, scheduled: Scheduled, prompts: bool) -> None:
        """Note what the proposer sees in this step, and give it what it has missed of rows to guess behind."""
        plan = scheduled.plan
        room = self._catching
        for index, row in enumerate(plan.rows):
            first = plan.positions[index]
            fed = min(self._fed.get(row, first), first)
            guessed = plan.guess > 0 and plan.samples[index]
            if guessed and fed < first and room:
                tokens = scheduled.requests[index].tokens(fed, min(first, fed + room))
                plan.behind[row] = (fed, tokens)
                room -= len(tokens)
                fed += len(tokens)
            self._fed[row] = _ALL if fed == first and (guessed or prompts) else fed

    def _choose(self, running: Sequence[Request]) -> int:
        """The next guess's length. Every position that will be sampled needs logits."""
        speculating = [request for request in running if _guessable(request)]
        if running and not speculating:
            return 0
        count = max(1, len(running))
        longest = min(self._longest, self._positions // count - 1)
        if self._fixed:
            return max(0, longest)
        fresh = Acceptance()
        rates = [
            self._acceptance.get(request.id, fresh).rate if _guessable(request) else 0.0 for request in running
        ]
        return self._length.choose(rates or [fresh.rate], longest)


def _guessable(request: Request) -> bool:
    """A grammar's masks are made on the host, which never sees what the device guesses."""
    return request.speculates and request.constraint is None
