"""Penalties for tokens that have occurred: repetition, presence and frequency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import IntArray, Layout, RowFlags, Subset, upload
from octavo.run.verify import Drafts

_IN_PROMPT = 1
_OUTPUT = 2  # added for each output, so that half the number is the count of outputs


@dataclass(frozen=True, slots=True, eq=False)
class _Strengths:
    """A batch's penalties as columns [m, 1]; ``None`` where no row has the penalty."""

    repetition: torch.Tensor | None
    presence: torch.Tensor | None
    frequency: torch.Tensor | None


class Penalties:
    """Repetition looks at prompt and outputs, presence and frequency at outputs only.

    From the first request that needs it on, an int32 [max_rows, vocab] on the device holds for each token
    twice the number of outputs, plus one if it is in the prompt.
    """

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._shape = (max_rows, vocab_size)
        self._device = device
        self._flags = RowFlags(max_rows)
        self._seen: torch.Tensor | None = None
        self._repetition = np.ones(max_rows, np.float32)
        self._presence = np.zeros(max_rows, np.float32)
        self._frequency = np.zeros(max_rows, np.float32)

    def admit(self, start: RowStart) -> None:
        self._flags.set(start.row, start.params.penalised)
        if not start.params.penalised:
            return
        self._repetition[start.row] = start.params.repetition_penalty
        self._presence[start.row] = start.params.presence_penalty
        self._frequency[start.row] = start.params.frequency_penalty
        if self._seen is None:
            self._seen = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        ids, marks = _marks(start)
        row = self._seen[start.row]
        row.zero_()
        row.index_copy_(0, upload(ids, self._device), upload(marks, self._device))

    @property
    def active(self) -> bool:
        return self._flags.any

    def release(self, row: int) -> None:
        self._flags.set(row, False)

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        subset = self._flags.select(layout)
        if subset is None or self._seen is None:
            return False
        strengths = layout.once(self, lambda: self._strengths(subset))
        part = subset.take(logits)
        seen = self._seen[subset.device_rows]
        if layout.drafts is not None:
            self._count_drafted(seen, subset, layout.drafts)
        _penalise(part, seen, strengths)
        subset.put(logits, part)
        return True

    def _count_drafted(self, seen: torch.Tensor, subset: Subset, drafts: Drafts) -> None:
        """Add to ``seen`` [m, vocab], a copy, the drafted tokens that come before each position."""
        places, tokens = drafts.before(subset.index)
        flat = upload(places * self._shape[1] + tokens, self._device)
        seen.view(-1).scatter_add_(0, flat, torch.full_like(flat, _OUTPUT, dtype=torch.int32))

    def accept(self, layout: Layout, tokens: torch.Tensor) -> None:
        subset = self._flags.select(layout)
        if subset is None or self._seen is None:
            return
        flat = subset.device_rows * self._shape[1] + subset.take(tokens)
        added = torch.full_like(flat, _OUTPUT, dtype=torch.int32)
        self._seen.view(-1).scatter_add_(0, flat, added)

    def _strengths(self, subset: Subset) -> _Strengths:
        def column(values: np.ndarray, neutral: float) -> torch.Tensor | None:
            chosen = values[subset.rows]
            return upload(chosen, self._device).unsqueeze(1) if (chosen != neutral).any() else None

        return _Strengths(
            repetition=column(self._repetition, 1.0),
            presence=column(self._presence, 0.0),
            frequency=column(self._frequency, 0.0),
        )


def _marks(start: RowStart) -> tuple[IntArray, np.ndarray]:
    """The distinct known tokens, and what ``seen`` holds for each."""
    tokens = np.array(start.tokens, np.int64)
    ids, places = np.unique(tokens, return_inverse=True)
    marks = _OUTPUT * np.bincount(places[start.prompt_length :], minlength=len(ids))
    marks[places[: start.prompt_length]] += _IN_PROMPT  # once for each id, however often it is named
    return ids, marks.astype(np.int32)


def _penalise(logits: torch.Tensor, seen: torch.Tensor, strengths: _Strengths) -> None:
    """``logits`` float32 [m, vocab], in place; ``seen`` int32 [m, vocab] may be overwritten."""
    if strengths.repetition is not None:
        penalised = torch.where(logits > 0, logits / strengths.repetition, logits * strengths.repetition)
        torch.where(seen > 0, penalised, logits, out=logits)
    if strengths.presence is None and strengths.frequency is None:
        return
    outputs = seen.bitwise_right_shift_(1)
    if strengths.frequency is not None:
        logits.sub_(outputs * strengths.frequency)
    if strengths.presence is not None:
        logits.sub_((outputs > 0) * strengths.presence)
