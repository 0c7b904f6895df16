"""How many tokens to draft: as many as pay, by what has been measured of acceptance and of a step's time.

A drafted token at place i of a request whose drafts are right with probability a is kept with probability a^i. It
pays while that is more than its share in a step's time: with n requests decoding in c seconds, one more token that
takes s seconds must bring more than s · n / c tokens. On a device that waits for memory s is small and drafts are
long; where many requests keep it busy, s · n / c approaches 1 and nothing is drafted.
"""

from __future__ import annotations

import math
from typing import Final

_FIRST_GUESS: Final = 0.6  # acceptance of a request that has not been measured
_MEMORY: Final = 0.9  # weight of what was known before each verified token
_RECOVERY: Final = 0.998  # likewise, for each step without a draft: a request gets another chance in time
_STEP_MEMORY: Final = 0.98  # weight of earlier steps in the times
_ENOUGH: Final = 4.0  # steps, by weight, before times are believed
_SAME: Final = 1e-3  # relative variance of step sizes below which they tell nothing about a token's cost
_UNMEASURED: Final = 0.05  # a token's share in a step's time before it is known
_OUTLIER: Final = 3.0  # a step that takes longer than so many times the expected counts as this


class Acceptance:
    """How often one request's drafted tokens are right."""

    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = _FIRST_GUESS

    def observe(self, drafted: int, accepted: int) -> None:
        """A draft was verified. Tokens behind the first wrong one tell nothing."""
        trials = accepted + (accepted < drafted)
        kept = _MEMORY**trials
        self.rate = kept * self.rate + (1 - kept) * accepted / trials

    def rest(self) -> None:
        """A step without a draft."""
        self.rate = _RECOVERY * self.rate + (1 - _RECOVERY) * _FIRST_GUESS

    def length(self, share: float, most: int) -> int:
        """The longest draft all of whose tokens pay, where each takes ``share`` of what a token brings."""
        if self.rate <= share:
            return 0
        if share <= 0 or self.rate >= 1:
            return most
        return min(most, int(math.log(share) / math.log(self.rate)))


class StepTimes:
    """A step's time as a line over its number of tokens, fitted to recent steps."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # of 1, tokens, tokens², seconds, tokens · seconds

    def observe(self, tokens: int, seconds: float) -> None:
        """A step over ``tokens`` tokens took ``seconds``."""
        weight, size, size2, time, time_size = (_STEP_MEMORY * value for value in self._sums)
        if weight >= _ENOUGH:
            seconds = min(seconds, _OUTLIER * time / weight)
        self._sums = (weight + 1, size + tokens, size2 + tokens**2, time + seconds, time_size + tokens * seconds)

    def share(self, rows: int) -> float:
        """What one more token takes, in tokens that ``rows`` decoding requests bring in the same time."""
        weight = self._sums[0]
        if weight < _ENOUGH:
            return _UNMEASURED
        mean, mean2, time, product = (value / weight for value in self._sums[1:])
        variance = mean2 - mean * mean
        if variance <= _SAME * mean * mean:
            return _UNMEASURED
        slope = (product - mean * time) / variance
        total = time + slope * (rows - mean)
        if slope <= 0:
            return 0.0
        return min(1.0, rows * slope / total) if total > 0 else 1.0
