"""Allowed token ids: everything else is barred."""

from __future__ import annotations

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import IntArray, Layout, RowFlags, upload


class AllowedTokens:
    """Holds bool [max_rows, vocab], true where barred, from the first request that needs it on."""

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._shape = (max_rows, vocab_size)
        self._device = device
        self._flags = RowFlags(max_rows)
        self._barred: torch.Tensor | None = None

    def admit(self, start: RowStart) -> None:
        allowed = start.params.allowed_token_ids
        self._flags.set(start.row, allowed is not None)
        if allowed is None:
            return
        if self._barred is None:
            self._barred = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
        row = self._barred[start.row]
        row.fill_(True)
        row.index_fill_(0, upload(np.array(allowed, np.int64), self._device), False)

    def release(self, row: int) -> None:
        self._flags.set(row, False)

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        subset = self._flags.select(layout)
        if subset is None or self._barred is None:
            return False
        part = subset.take(logits)
        part.masked_fill_(self._barred[subset.device_rows], -torch.inf)
        subset.put(logits, part)
        return True
