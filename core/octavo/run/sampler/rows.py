"""Rows and batches: what the host knows of them, so that the device is never asked.

A request keeps one row for its life; a batch names some rows in some order. Which of them need a feature is kept
in numpy at admission. The index tensors that follow from it are made once for a batch's composition and used
again while the same rows come back, as they do from one decode step to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch

from octavo.run.verify import Drafts

T = TypeVar("T")
IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


def upload(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """``array`` on ``device``, without waiting for work queued there. The array must not change afterwards."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some rows of a batch: their places in it (``index``) and their permanent ids (``rows``), int64 [m]."""

    index: IntArray
    rows: IntArray
    device_index: torch.Tensor
    device_rows: torch.Tensor
    whole: bool  # every row of the batch, in order

    def take(self, batch: torch.Tensor) -> torch.Tensor:
        """These rows of ``batch`` [n, …]: ``batch`` itself where that is all of them, else a copy."""
        return batch if self.whole else batch[self.device_index]

    def put(self, batch: torch.Tensor, part: torch.Tensor) -> None:
        """Write ``part`` [m, …], which ``take`` gave, back into ``batch``."""
        if part is not batch:
            batch.index_copy_(0, self.device_index, part)


class Layout:
    """One composition of a batch: its rows in order, and facts derived from them, each derived once.

    With ``drafts`` a row stands there once for each of its positions, behind ever more drafted tokens.
    """

    def __init__(self, rows: IntArray, device: torch.device, drafts: Drafts | None = None) -> None:
        self.rows = rows
        self.device = device
        self.drafts = drafts
        self._facts: dict[object, object] = {}

    def once(self, key: object, derive: Callable[[], T]) -> T:
        """What ``derive`` returned the first time it was called for ``key``."""
        if key not in self._facts:
            self._facts[key] = derive()
        return cast(T, self._facts[key])

    def subset(self, mask: BoolArray) -> Subset | None:
        """The rows where ``mask`` [n] is true; ``None`` where there are none."""
        index = np.flatnonzero(mask)
        if not len(index):
            return None
        rows = self.rows[index]
        on_device = upload(np.stack([index, rows]), self.device)
        return Subset(index, rows, on_device[0], on_device[1], len(index) == len(self.rows))

    def values(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """``array`` [max_rows], one value a row, as a column [n, 1] for this batch."""
        return upload(array[self.rows], self.device).unsqueeze(1)


class RowFlags:
    """Which rows need a feature."""

    def __init__(self, max_rows: int) -> None:
        self._on: BoolArray = np.zeros(max_rows, np.bool_)
        self._count = 0

    @property
    def any(self) -> bool:
        """Whether a row needs the feature."""
        return self._count > 0

    def set(self, row: int, on: bool) -> None:
        self._count += int(on) - int(self._on[row])
        self._on[row] = on

    def select(self, layout: Layout) -> Subset | None:
        """The batch's rows that need the feature; ``None`` where none does."""
        if not self._count:
            return None
        return layout.once(self, lambda: layout.subset(self._on[layout.rows]))


def flat_index(index: IntArray, ids: Sequence[IntArray], vocab_size: int) -> IntArray:
    """Where ``ids[i]`` of batch row ``index[i]`` lie in the flattened logits, for all ``i`` together."""
    return np.concatenate([place * vocab_size + row_ids for place, row_ids in zip(index, ids, strict=True)])
