"""What the scheduler asks of speculation, whoever guesses: who gets a draft, and what became of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from octavo.contracts.executor import StepResult
from octavo.scheduling.request import Request
from octavo.scheduling.step import Scheduled, StepBuilder

REST: Final = 16
"""Steps without a draft after which the host rests, and from one look for drafts to the next."""

LOOK: Final = 3
"""Steps of such a look: in the first the last tokens come in."""

MOST_POSITIONS: Final = 64
"""Positions sampled in one step, beyond what max_sequences allows for anyway."""

_log = logging.getLogger("octavo.speculation")


@dataclass(slots=True)
class DraftCounts:
    """Counted from the start; ``accepted_at[i]``: drafts that were right up to place i."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_at: list[int] = field(default_factory=list)

    def add(self, drafted: int, accepted: int) -> None:
        """A draft was verified."""
        self.drafts += 1
        self.drafted += drafted
        self.accepted += accepted
        for place in range(accepted):
            self.accepted_at[place] += 1


class Speculating(Protocol):
    """``off`` is empty, or says why guessing was switched off. ``guess``: tokens that the device guesses behind the
    step about to be scheduled; 0 where the host does."""

    off: str
    guess: int
    counts: DraftCounts

    @property
    def resting(self) -> bool:
        """Nothing is guessed for a while: steps may be scheduled before the last one's tokens are there. A request
        whose newest token is on the device gets no draft."""
        ...

    def draft(self, running: Sequence[Request], budget: int) -> None:
        """Set ``drafts`` of the running requests for the step that is about to be scheduled.

        ``budget`` is the step's; decodes come first, and of what they leave drafts take half at most.
        """
        ...

    def released(self, rows: Sequence[int]) -> None:
        """These rows were given back."""
        ...

    def launching(self, step: StepBuilder, scheduled: Scheduled, now: float) -> None:
        """A step starts, at ``now`` seconds."""
        ...

    def finished(self, result: StepResult, now: float) -> None:
        """A step's result is there."""
        ...

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        """Of a draft of ``drafted`` tokens the first ``accepted`` were right."""
        ...

    def ended(self, request: Request) -> None:
        """The request has finished."""
        ...


def switched_off(name: str, reason: str, error: Exception | None = None) -> str:
    """Log that a proposer was switched off; what ``off`` says from then on."""
    off = f"proposer {name!r} was switched off: {reason}"
    _log.error("%s. Requests go on without drafts.", off, exc_info=error)
    return off


def room_for_drafts(running: Sequence[Request], budget: int, most_positions: int) -> tuple[list[Request], int]:
    """The running requests that decode, and how many drafted tokens the coming step has room for."""
    decodes = [request for request in running if not request.pending and request.known - request.computed == 1]
    return decodes, min((budget - len(decodes)) // 2, most_positions - len(running))
