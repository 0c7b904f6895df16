"""Logit bias: a number added to the logits of chosen tokens."""

from __future__ import annotations

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import IntArray, Layout, RowFlags, Subset, flat_index, upload


class LogitBias:
    """Keeps each row's ids and numbers on the host; a batch's are uploaded when its composition changes."""

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._flags = RowFlags(max_rows)
        self._ids: dict[int, IntArray] = {}
        self._bias: dict[int, np.ndarray] = {}

    def admit(self, start: RowStart) -> None:
        bias = start.params.logit_bias
        self._flags.set(start.row, bool(bias))
        if bias:
            self._ids[start.row] = np.array(list(bias), np.int64)
            self._bias[start.row] = np.array(list(bias.values()), np.float32)

    def release(self, row: int) -> None:
        self._flags.set(row, False)
        self._ids.pop(row, None)
        self._bias.pop(row, None)

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        subset = self._flags.select(layout)
        if subset is None:
            return False
        flat, bias = layout.once(self, lambda: self._upload(subset))
        logits.view(-1).index_add_(0, flat, bias)
        return True

    def _upload(self, subset: Subset) -> tuple[torch.Tensor, torch.Tensor]:
        flat = flat_index(subset.index, [self._ids[row] for row in subset.rows.tolist()], self._vocab_size)
        bias = np.concatenate([self._bias[row] for row in subset.rows.tolist()])
        return upload(flat, self._device), upload(bias, self._device)
