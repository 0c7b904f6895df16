"""Where tokens stood before: an index from short n-grams to the places behind them, over many sequences.

In place of a suffix tree. A tree answers how often a continuation followed a match in time that does not depend on
the number of matches, but takes an object for each token and length; here a token takes one number in a list,
matches are extended by comparing lists, and of very frequent n-grams only the latest places are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

GRAM: Final = 2
"""Tokens of an n-gram, and the least that a match has."""

_LOOKED_AT: Final = 32
Place = tuple[int, int]  # sequence, index of the token behind


class SuffixIndex:
    """Sequences of tokens that may grow at their ends and are forgotten whole, the oldest ones first.

    ``limit``: tokens that are kept in all; ``None``: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._sequences: OrderedDict[int, list[int]] = OrderedDict()
        self._behind: dict[tuple[int, ...], list[Place]] = {}
        self._next = 0
        self.size = 0

    def begin(self) -> int:
        """A new sequence's number."""
        number, self._next = self._next, self._next + 1
        self._sequences[number] = []
        return number

    def add(self, number: int, fresh: Sequence[int]) -> None:
        """More tokens at a sequence's end."""
        tokens = self._sequences[number]
        start = len(tokens)
        tokens.extend(fresh)
        self.size += len(fresh)
        for at in range(max(start, GRAM), len(tokens)):
            places = self._behind.setdefault(tuple(tokens[at - GRAM : at]), [])
            places.append((number, at))
            if len(places) > 2 * _LOOKED_AT:
                del places[:_LOOKED_AT]
        if self._limit is not None:
            while self.size > self._limit and len(self._sequences) > 1:
                self.forget(next(iter(self._sequences)))

    def forget(self, number: int) -> None:
        """Drop a sequence. Places in it are dropped with it."""
        tokens = self._sequences.pop(number)
        self.size -= len(tokens)
        for gram in {tuple(tokens[at - GRAM : at]) for at in range(GRAM, len(tokens))}:
            left = [place for place in self._behind.pop(gram, ()) if place[0] != number]
            if left:
                self._behind[gram] = left

    def longest(self, tail: Sequence[int], most: int) -> tuple[int, list[tuple[list[int], int]]]:
        """How many of the last ``tail`` tokens stood somewhere before, up to ``most``, and where: each place as the
        sequence's tokens and the index behind the match. The end of the tail itself is no such place."""
        if len(tail) < GRAM:
            return 0, []
        best = 0
        found: list[tuple[list[int], int]] = []
        length = len(tail)
        for number, at in reversed(self._behind.get(tuple(tail[-GRAM:]), [])[-_LOOKED_AT:]):
            tokens = self._sequences[number]
            matched, reach = GRAM, min(most, at, length)
            while matched < reach and tokens[at - 1 - matched] == tail[length - 1 - matched]:
                matched += 1
            if matched > best:
                best, found = matched, []
            if matched == best:
                found.append((tokens, at))
        return best, found


def likeliest(places: Sequence[tuple[list[int], int]], most: int, least: float) -> tuple[list[int], float]:
    """The tokens that came most often, place by place, while at least a share ``least`` of the places agrees with
    all of them; and the sum of these shares, which is how many of the tokens are right on average."""
    total, score = len(places), 0.0
    draft: list[int] = []
    while len(draft) < most:
        counts: dict[int, int] = {}
        for tokens, at in places:
            if at < len(tokens):
                counts[tokens[at]] = counts.get(tokens[at], 0) + 1
        if not counts:
            break
        token = max(counts, key=counts.__getitem__)  # of equals the first, which is the latest place's
        share = counts[token] / total
        if share < least:
            break
        draft.append(token)
        score += share
        places = [(tokens, at + 1) for tokens, at in places if at < len(tokens) and tokens[at] == token]
    return draft, score
