"""The proposer slot: guesses of the tokens that come next. What becomes of a guess is the core's business.

Verification is exact whatever is proposed: the core samples every position as it would without a draft, with the
same noise, and keeps drafted tokens while they equal what was sampled. A proposer can make an engine faster or
slower, and never change an answer; so it needs neither the model's probabilities nor its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class DraftRow:
    """A row that may have a draft: the tokens it got since its proposer last heard of it (perhaps none), and how
    many may be proposed, at least 1."""

    row: int
    fresh: Sequence[int]
    limit: int


@dataclass(frozen=True, slots=True)
class Draft:
    """``tokens`` int64 [rows, width] and ``lengths`` int64 [rows], in the order of the rows asked for.

    Of row i the first ``lengths[i]`` tokens count, from 0 (no idea) to its ``limit``; what follows is padding.
    """

    tokens: np.ndarray
    lengths: np.ndarray


class Proposer(Protocol):
    """Runs in the engine's thread, between two steps: its time is added to every step.

    A call that raises, a wrong shape or type, a length beyond the limit or a token id out of range switches the
    proposer off until the engine is started again; requests go on without it.
    """

    max_tokens: int
    """The longest draft that it will ever give, at least 1."""

    def reserve(self, row: int, tokens: Sequence[int]) -> None:
        """A request takes ``row``; ``tokens`` are all that are known of it, the prompt first."""
        ...

    def release(self, row: int) -> None:
        """The row's request has gone, or waits to begin anew."""
        ...

    def propose(self, rows: Sequence[DraftRow]) -> Draft:
        """Tokens that may follow those known of each of ``rows``. Never empty; no row stands in it twice."""
        ...
