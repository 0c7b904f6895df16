"""The n-gram proposer: an index of each row's tokens that grows with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.contracts.proposer import Draft, DraftRow

_LOOKED_AT = 8  # of the places where the shortest n-gram stands, the latest ones
_NOWHERE: list[int] = []


class NgramProposer:
    """A :class:`octavo.contracts.proposer.Proposer`. Of all earlier places the longest match wins, then the latest.

    Adding a token and finding a place take a few dictionary operations each, however long the request is.
    """

    def __init__(self, max_tokens: int, shortest: int, longest: int) -> None:
        self.max_tokens = max_tokens
        self._shortest, self._longest = shortest, longest
        self._rows: dict[int, _Index] = {}

    def reserve(self, row: int, tokens: Sequence[int]) -> None:
        self._rows[row] = _Index(tokens, self._shortest)

    def release(self, row: int) -> None:
        self._rows.pop(row, None)

    def propose(self, rows: Sequence[DraftRow]) -> Draft:
        drafts = [self._draft(row) for row in rows]
        lengths = np.array([len(draft) for draft in drafts], np.int64)
        tokens = np.zeros((len(drafts), int(lengths.max())), np.int64)
        for place, draft in enumerate(drafts):
            tokens[place, : len(draft)] = draft
        return Draft(tokens, lengths)

    def _draft(self, row: DraftRow) -> list[int]:
        index = self._rows[row.row]
        index.add(row.fresh)
        start = index.find(self._longest)
        if start < 0:
            return []
        # A period shorter than the draft repeats itself.
        tail = index.tokens[start : start + row.limit]
        return (tail * -(-row.limit // len(tail)))[: row.limit]


class _Index:
    """A row's tokens, and where each n-gram of the shortest length ended: the places behind it, in order."""

    __slots__ = ("_behind", "_shortest", "tokens")

    def __init__(self, tokens: Sequence[int], shortest: int) -> None:
        self.tokens: list[int] = []
        self._shortest = shortest
        self._behind: dict[tuple[int, ...], list[int]] = {}
        self.add(tokens)

    def add(self, fresh: Sequence[int]) -> None:
        """More tokens. The n-gram at the very end is left out, for nothing follows it yet."""
        tokens, size, behind = self.tokens, self._shortest, self._behind
        first = max(len(tokens), size)
        tokens.extend(fresh)
        if len(tokens) <= first:
            return
        grams = zip(*(tokens[first - size + i : len(tokens) - size + i] for i in range(size)), strict=True)
        for place, gram in enumerate(grams, first):
            behind.setdefault(gram, []).append(place)

    def find(self, longest: int) -> int:
        """The place behind the best earlier match of the end; -1 if there is none."""
        tokens, size = self.tokens, self._shortest
        length = len(tokens)
        best, best_size = -1, 0
        for place in reversed(self._behind.get(tuple(tokens[length - size :]), _NOWHERE)[-_LOOKED_AT:]):
            matched = size
            most = min(longest, place)
            while matched < most and tokens[place - 1 - matched] == tokens[length - 1 - matched]:
                matched += 1
            if matched > best_size:
                best, best_size = place, matched
            if matched >= longest:
                break
        return best
