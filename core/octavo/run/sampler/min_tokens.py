"""Minimum length: the ids that would end a request are barred until it has enough outputs."""

from __future__ import annotations

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import IntArray, Layout, RowFlags, flat_index, upload


class MinTokens:
    """Which rows are still too short follows from their positions, which the host knows."""

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._flags = RowFlags(max_rows)
        self._first_free: IntArray = np.zeros(max_rows, np.int64)  # first position where ending is allowed
        self._stop_ids: dict[int, IntArray] = {}

    def admit(self, start: RowStart) -> None:
        # An id that the model cannot produce (some tokenizers have them) needs no bar.
        stop_ids = [token for token in start.stop_ids if 0 <= token < self._vocab_size]
        self._flags.set(start.row, start.params.min_tokens > 0 and bool(stop_ids))
        self._first_free[start.row] = start.prompt_length + start.params.min_tokens
        self._stop_ids[start.row] = np.array(stop_ids, np.int64)

    def release(self, row: int) -> None:
        self._flags.set(row, False)
        self._stop_ids.pop(row, None)

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        subset = self._flags.select(layout)
        if subset is None:
            return False
        short = positions[subset.index] < self._first_free[subset.rows]
        if not short.any():
            return False
        stop_ids = [self._stop_ids[row] for row in subset.rows[short].tolist()]
        flat = flat_index(subset.index[short], stop_ids, self._vocab_size)
        logits.view(-1).index_fill_(0, upload(flat, self._device), -torch.inf)
        return True
