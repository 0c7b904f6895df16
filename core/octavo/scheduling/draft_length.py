"""How many tokens to draft: as many as pay, by what has been measured of acceptance and of a step's time.

A drafted token at place i of a request whose drafts are right with probability a is kept with probability a^i. It
pays while that is more than its share in a step's time: with n requests decoding in c seconds, one more token that
takes s seconds must bring more than s · n / c tokens. On a device that waits for memory s is small and drafts are
long; where many requests keep it busy, s · n / c approaches 1 and nothing is drafted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_FIRST_GUESS: Final = 0.6  # acceptance of a request that has not been measured
_MEMORY: Final = 0.9  # weight of what was known before each verified token
_RECOVERY: Final = 0.998  # likewise, for each step without a draft: a request gets another chance in time
_STEP_MEMORY: Final = 0.98  # weight of earlier steps in the times
_ENOUGH: Final = 4.0  # steps, by weight, before times are believed
_SAME: Final = 1e-3  # relative variance of step sizes below which they tell nothing about a token's cost
_UNMEASURED: Final = 0.05  # a token's share in a step's time before it is known
_UNMEASURED_GUESS: Final = 0.12  # a guess's share in a step's time before it is known
_PERIOD_MEMORY: Final = 0.9  # weight of earlier steps of the same kind, for each new one
_BETTER: Final = 0.01  # a longer guess must bring so much more
_TRIAL: Final = 48  # decisions from one trial of a neighbouring length to the next
_RARE_TRIAL: Final = 512  # likewise, where guessing does not pay
_TRIAL_STEPS: Final = 4  # a trial's length
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


class Periods:
    """How long steps take in which ``rows`` requests verify guesses of one length, the guessing included.

    Kept for each power of two of rows. What has not been measured is read off a line over the length, fitted to
    what has; before that, each guess is taken to cost ``_UNMEASURED_GUESS`` of a step.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[int, dict[int, tuple[float, float]]] = {}  # bucket: length: weight, mean seconds

    def observe(self, rows: int, length: int, seconds: float) -> None:
        """Such a step took ``seconds``."""
        kept = self._kept.setdefault(rows.bit_length(), {})
        weight, mean = kept.get(length, (0.0, 0.0))
        if weight >= _ENOUGH:
            seconds = min(seconds, _OUTLIER * mean)
        weight *= _PERIOD_MEMORY
        kept[length] = (weight + 1, (weight * mean + seconds) / (weight + 1))

    def estimate(self, rows: int, longest: int) -> list[float]:
        """Seconds for each length from 0 to ``longest``; only their ratios count where nothing is known."""
        kept = self._kept.get(rows.bit_length(), {})
        line = _line(kept)
        found = []
        for length in range(longest + 1):
            weight, mean = kept.get(length, (0.0, 0.0))
            guessed = line[0] + line[1] * length
            found.append((weight * mean + guessed) / (weight + 1))
        return found


def _line(kept: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of seconds over length, drawn towards ``_UNMEASURED_GUESS`` of the intercept."""
    total = sum(weight for weight, _ in kept.values())
    if not total:
        return 1.0, _UNMEASURED_GUESS
    length = sum(weight * at for at, (weight, _) in kept.items()) / total
    mean = sum(weight * value for weight, value in kept.values()) / total
    prior = mean * _UNMEASURED_GUESS / (1 + _UNMEASURED_GUESS * length)
    spread = sum(weight * (at - length) ** 2 for at, (weight, _) in kept.items())
    product = sum(weight * (at - length) * (value - mean) for at, (weight, value) in kept.items())
    slope = max(0.0, (product + prior) / (spread + 1.0))
    return max(mean - slope * length, 0.1 * mean), slope


class GuessLength:
    """How many tokens the device should guess behind every row: what brings most tokens a second.

    With acceptance a, a guess of k tokens brings 1 + a + … + a^k tokens. Now and then a neighbouring length is
    tried, so that the costs of both stay known; where guessing does not pay, it is tried again rarely.
    """

    __slots__ = ("_decisions", "_periods")

    def __init__(self) -> None:
        self._periods = Periods()
        self._decisions = 0

    def observe(self, rows: int, length: int, seconds: float) -> None:
        """A step of ``rows`` requests with guesses of one length took ``seconds``, the guessing included."""
        self._periods.observe(rows, length, seconds)

    def choose(self, rates: Sequence[float], longest: int) -> int:
        """The length for requests whose guesses are right at these ``rates``, 0 to ``longest``."""
        if longest < 1 or not rates:
            return 0
        best = self._best(rates, longest)
        self._decisions += 1
        phase = self._decisions % (_TRIAL if best else _RARE_TRIAL)
        if phase >= _TRIAL_STEPS:
            return best
        step = 1 if self._decisions // _TRIAL % 2 else -1
        return max(0 if best else 1, min(longest, best + step))

    def _best(self, rates: Sequence[float], longest: int) -> int:
        seconds = self._periods.estimate(len(rates), longest)
        powers, tokens, best, speed = [1.0] * len(rates), float(len(rates)), 0, 0.0
        for length in range(longest + 1):
            if length:
                powers = [power * rate for power, rate in zip(powers, rates, strict=True)]
                tokens += sum(powers)
            if tokens / seconds[length] > speed * (1 + _BETTER * (length > 0)):
                best, speed = length, tokens / seconds[length]
        return best
