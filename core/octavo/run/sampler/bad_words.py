"""Bad words: the last token of a word is barred where the tokens before it are the word's beginning.

What precedes may lie in the prompt. The newest tokens are known only on the device, so the ends of the rows that
have words of several tokens are kept there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import IntArray, Layout, RowFlags, Subset, upload

ANY = -1  # in a beginning: fits every token
NONE = -2  # in an end: no token, fits no beginning


@dataclass(frozen=True, slots=True, eq=False)
class _Words:
    """A row's words, or a batch's. ``beginnings`` int64 [words, width], padded on the left with ``ANY``."""

    beginnings: IntArray
    lasts: IntArray  # int64 [words]


class BadWords:
    """Keeps words on the host and, for rows with words of several tokens, int64 [max_rows, width] of ends."""

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self._device = device
        self._flags = RowFlags(max_rows)
        self._long = RowFlags(max_rows)  # rows with a word of several tokens
        self._words: dict[int, _Words] = {}
        self._ends = torch.full((max_rows, 0), NONE, device=device)

    def admit(self, start: RowStart) -> None:
        words = [word for word in start.bad_word_ids if word]
        width = max((len(word) - 1 for word in words), default=0)
        self._flags.set(start.row, bool(words))
        self._long.set(start.row, width > 0)
        if not words:
            return
        beginnings = np.full((len(words), width), ANY, np.int64)
        for index, word in enumerate(words):
            beginnings[index, width - len(word) + 1 :] = word[:-1]
        self._words[start.row] = _Words(beginnings, np.array([word[-1] for word in words], np.int64))
        if width:
            self._widen(width)
            self._set_end(start)

    @property
    def active(self) -> bool:
        return self._flags.any

    def release(self, row: int) -> None:
        self._flags.set(row, False)
        self._long.set(row, False)
        self._words.pop(row, None)

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        subset = self._flags.select(layout)
        if subset is None:
            return False
        flat, index, rows, beginnings = layout.once(self, lambda: self._upload(subset))
        ends = self._ends[rows, self._ends.shape[1] - beginnings.shape[1] :]
        if layout.drafts is not None:
            ends = layout.drafts.shifted(ends, index)
        matched = ((beginnings == ends) | (beginnings == ANY)).all(dim=1)
        # The smaller of the logit and ±inf: right in any order where two words end in the same token.
        bars = torch.where(matched, -torch.inf, torch.inf)
        logits.view(-1).scatter_reduce_(0, flat, bars, "amin")
        return True

    def accept(self, layout: Layout, tokens: torch.Tensor) -> None:
        subset = self._long.select(layout)
        if subset is None:
            return
        ends = self._ends[subset.device_rows]
        ends = torch.cat([ends[:, 1:], subset.take(tokens).unsqueeze(1)], dim=1)
        self._ends.index_copy_(0, subset.device_rows, ends)

    def _upload(self, subset: Subset) -> tuple[torch.Tensor, IntArray, torch.Tensor, torch.Tensor]:
        """For the batch's words: place in the flattened logits, place in the batch, row, beginning."""
        words = [self._words[row] for row in subset.rows.tolist()]
        counts = [len(each.lasts) for each in words]
        width = max(each.beginnings.shape[1] for each in words)
        beginnings = np.full((sum(counts), width), ANY, np.int64)
        filled = 0
        for each, count in zip(words, counts, strict=True):
            beginnings[filled : filled + count, width - each.beginnings.shape[1] :] = each.beginnings
            filled += count
        lasts = np.concatenate([each.lasts for each in words])
        index, rows = np.repeat(subset.index, counts), np.repeat(subset.rows, counts)
        flat = index * self._vocab_size + lasts
        return upload(flat, self._device), index, upload(rows, self._device), upload(beginnings, self._device)

    def _widen(self, width: int) -> None:
        """Room for ends of ``width`` tokens; those kept so far stay as they are, at the right."""
        missing = width - self._ends.shape[1]
        if missing > 0:
            room = torch.full((self._max_rows, missing), NONE, device=self._device)
            self._ends = torch.cat([room, self._ends], dim=1)

    def _set_end(self, start: RowStart) -> None:
        width = self._ends.shape[1]
        end = np.full(width, NONE, np.int64)
        known = start.tokens[-width:]
        end[width - len(known) :] = known
        self._ends[start.row].copy_(upload(end, self._device))
