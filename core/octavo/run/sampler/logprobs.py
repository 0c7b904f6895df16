"""Log-probabilities of the model's own distribution: before bars, penalties, temperature and truncation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from octavo.contracts.executor import RowLogprobs, RowStart
from octavo.params import MAX_LOGPROBS
from octavo.run.sampler.rows import Layout, RowFlags, Subset

_CHUNK: Final = 1 << 26  # logits normalised at a time


class Columns(NamedTuple):
    """For m positions: the token, its rank and log-probability [m]; the top ids and log-probabilities [m, k]."""

    tokens: torch.Tensor
    ranks: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Logprobs:
    """Log-probabilities on their way to the host.

    On a GPU the columns are host copies under way, and ``arrived`` marks their end. ``counts``: how many of the
    top ones each position wants.
    """

    columns: Columns
    counts: tuple[int, ...]
    arrived: torch.cuda.Event | None

    def to_host(self) -> list[RowLogprobs]:
        """Wait for these copies, not for work queued after them, and return one record a position."""
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens, ranks, logprobs, top_ids, top = (column.tolist() for column in self.columns)
        return [
            RowLogprobs(tokens[i], logprobs[i], ranks[i], top_ids[i][:count], top[i][:count])
            for i, count in enumerate(self.counts)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class SampledLogprobs:
    """Those of a step. ``index``: place in the batch of each row that asked."""

    index: tuple[int, ...]
    values: Logprobs

    def to_host(self) -> dict[int, RowLogprobs]:
        """By place in the batch."""
        return dict(zip(self.index, self.values.to_host(), strict=True))


class AskedLogprobs:
    """Which rows asked, and for how many of the most probable tokens."""

    def __init__(self, max_rows: int) -> None:
        self._flags = RowFlags(max_rows)
        self._counts = np.zeros(max_rows, np.int64)

    def admit(self, start: RowStart) -> None:
        count = start.params.logprobs
        self._flags.set(start.row, count is not None)
        self._counts[start.row] = count or 0

    def release(self, row: int) -> None:
        self._flags.set(row, False)

    def before(self, logits: torch.Tensor, layout: Layout) -> tuple[Subset, torch.Tensor] | None:
        """The rows that ask and their normalised ``logits``, a copy; to be handed to ``after``."""
        subset = self._flags.select(layout)
        return None if subset is None else (subset, subset.take(logits).log_softmax(dim=1))

    def after(self, asked: tuple[Subset, torch.Tensor], tokens: torch.Tensor) -> SampledLogprobs:
        """``tokens`` int64 [n] were sampled."""
        subset, normalised = asked
        counts = tuple(self._counts[subset.rows].tolist())
        values = _send(_columns(normalised, subset.take(tokens)), counts)
        return SampledLogprobs(tuple(subset.index.tolist()), values)


def logprobs_of(logits: torch.Tensor, targets: torch.Tensor, count: int) -> Logprobs:
    """Of ``targets`` int64 [m] under ``logits`` float32 [m, vocab], with the ``count`` most probable ones."""
    size = max(1, _CHUNK // logits.shape[1])
    starts = range(0, max(len(targets), 1), size)
    chunks = [_columns(logits[i : i + size].log_softmax(dim=1), targets[i : i + size]) for i in starts]
    columns = Columns(*(torch.cat(column) for column in zip(*chunks, strict=True)))
    return _send(columns, (count,) * len(targets))


def _columns(normalised: torch.Tensor, tokens: torch.Tensor) -> Columns:
    """The top list has one length whatever was asked for, so that equals come in one order in any batch."""
    own = normalised.gather(1, tokens.unsqueeze(1))
    ranks = (normalised > own).sum(dim=1) + 1
    top = normalised.topk(min(MAX_LOGPROBS, normalised.shape[1]), dim=1)
    return Columns(tokens, ranks, own.squeeze(1), top.indices, top.values)


def _send(columns: Columns, counts: tuple[int, ...]) -> Logprobs:
    if not columns.tokens.is_cuda:
        return Logprobs(columns, counts, None)
    columns = Columns(*(column.to("cpu", non_blocking=True) for column in columns))
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return Logprobs(columns, counts, arrived)
