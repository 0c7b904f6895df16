"""The suffix proposer: one index of each request's tokens, one of earlier answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octavo.contracts.proposer import Draft, DraftRow
from octavo_speculative.suffix_index import SuffixIndex, likeliest


@dataclass(slots=True)
class _Row:
    tokens: list[int]
    prompt_length: int  # tokens that were there when the row was taken
    index: SuffixIndex
    number: int


class SuffixProposer:
    """A :class:`octavo.contracts.proposer.Proposer`. ``kept``: tokens of earlier answers that are remembered."""

    def __init__(self, max_tokens: int, depth: int, factor: float, least: float, kept: int) -> None:
        self.max_tokens = max_tokens
        self._depth, self._factor, self._least = depth, factor, least
        self._rows: dict[int, _Row] = {}
        self._answers = SuffixIndex(kept) if kept else None

    def reserve(self, row: int, tokens: Sequence[int]) -> None:
        index = SuffixIndex()
        number = index.begin()
        index.add(number, tokens)
        self._rows[row] = _Row(list(tokens), len(tokens), index, number)

    def release(self, row: int) -> None:
        """What was answered joins the earlier answers, with the end of what came before it as a context."""
        gone = self._rows.pop(row, None)
        if gone is None or self._answers is None or len(gone.tokens) == gone.prompt_length:
            return
        answer = gone.tokens[max(0, gone.prompt_length - self._depth) :]
        self._answers.add(self._answers.begin(), answer)

    def propose(self, rows: Sequence[DraftRow]) -> Draft:
        drafts = [self._draft(row) for row in rows]
        lengths = np.array([len(draft) for draft in drafts], np.int64)
        tokens = np.zeros((len(drafts), int(lengths.max())), np.int64)
        for place, draft in enumerate(drafts):
            tokens[place, : len(draft)] = draft
        return Draft(tokens, lengths)

    def _draft(self, asked: DraftRow) -> list[int]:
        row = self._rows[asked.row]
        row.tokens += asked.fresh
        row.index.add(row.number, asked.fresh)
        best: list[int] = []
        most_right = 0.0
        for index in (row.index, self._answers):
            if index is None:
                continue
            matched, places = index.longest(row.tokens[-self._depth :], self._depth)
            limit = min(asked.limit, max(1, int(self._factor * matched)))
            draft, right = likeliest(places, limit, self._least)
            if right > most_right:
                best, most_right = draft, right
        return best
