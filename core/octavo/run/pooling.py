"""Embeddings: the hidden states of a prompt pooled to one vector, over as many steps as its chunks take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.executor import StepPlan
from octavo.run.upload import upload

_LAST, _MEAN = 1, 2
_KINDS = {"": 0, "last": _LAST, "mean": _MEAN}


@dataclass(frozen=True, slots=True)
class Pooled:
    """Vectors float32 [n, hidden] on their way to the host, and the indices of the plan's rows they belong to."""

    index: np.ndarray
    vectors: Tensor
    arrived: torch.cuda.Event | None

    @staticmethod
    def send(index: np.ndarray, vectors: Tensor) -> Pooled:
        """Start the copy."""
        if not vectors.is_cuda:
            return Pooled(index, vectors, None)
        on_host = vectors.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return Pooled(index, on_host, arrived)

    def results(self) -> dict[int, np.ndarray]:
        """Wait; by index into the plan's rows."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.index.tolist(), self.vectors.numpy(), strict=True))


class Pooler:
    """What has been summed up of each row that pools."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._kinds = np.zeros(max_rows, np.int8)
        self._lengths = np.zeros(max_rows, np.int64)
        self._sums: Tensor | None = None  # float32 [max_rows, hidden], made when the first mean is asked for
        self._count = 0  # rows that pool

    def apply(self, plan: StepPlan) -> None:
        """Rows ended and started."""
        for row in plan.ends:
            self._count -= int(self._kinds[row] != 0)
            self._kinds[row] = 0
        for start in plan.starts:
            self._kinds[start.row] = _KINDS[start.pooling]
            self._lengths[start.row] = start.prompt_length
            self._count += bool(start.pooling)

    def collect(self, plan: StepPlan, hidden: Tensor) -> Pooled | None:
        """Take in a step's ``hidden`` [tokens, hidden_size]; the vectors of the rows whose prompt ends in it."""
        if not self._count:
            return None
        rows, counts = np.asarray(plan.rows, np.int64), np.asarray(plan.counts, np.int64)
        ends = np.cumsum(counts)
        done = np.asarray(plan.positions, np.int64) + counts == self._lengths[rows]
        last = np.flatnonzero((self._kinds[rows] == _LAST) & done)
        mean = np.flatnonzero(self._kinds[rows] == _MEAN)
        vectors = []
        if len(last):
            vectors.append(hidden.index_select(0, upload((ends[last] - 1,), self._device)[0]).float())
        if len(mean):
            means = self._means(plan, hidden, mean, ends)
            mean, finished = mean[done[mean]], np.flatnonzero(done[mean])
            vectors.append(means.index_select(0, upload((finished,), self._device)[0]))
        index = np.concatenate((last, mean))
        return Pooled.send(index, torch.cat(vectors)) if len(index) else None

    def _means(self, plan: StepPlan, hidden: Tensor, index: np.ndarray, ends: np.ndarray) -> Tensor:
        """Sums so far of the rows at ``index`` of the plan, divided by the lengths of their prompts."""
        rows = np.asarray(plan.rows, np.int64)[index]
        counts = np.asarray(plan.counts, np.int64)[index]
        tokens = np.repeat(ends[index] - np.cumsum(counts), counts) + np.arange(counts.sum())
        begun = np.asarray(plan.positions, np.int64)[index] > 0
        sent = upload((tokens, counts, rows, begun.astype(np.int64), self._lengths[rows]), self._device)
        if self._sums is None:
            self._sums = torch.zeros(len(self._kinds), hidden.shape[1], device=self._device)
        summed = torch.segment_reduce(
            hidden.index_select(0, sent[0]).float(), "sum", lengths=sent[1], axis=0, unsafe=True
        )
        summed += torch.where(sent[3].unsqueeze(1) > 0, self._sums.index_select(0, sent[2]), 0.0)
        self._sums.index_copy_(0, sent[2], summed)
        return summed / sent[4].unsqueeze(1)
