"""min_p: tokens less probable than a share of the most probable one's are dropped."""

from __future__ import annotations

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import Layout, RowFlags


class MinP:
    """Needs no probabilities: p ≥ min_p · p_max where the logit is at least max + log(min_p)."""

    def __init__(self, max_rows: int) -> None:
        self._flags = RowFlags(max_rows)
        self._log_share = np.zeros(max_rows, np.float32)

    def admit(self, start: RowStart) -> None:
        share = start.params.min_p
        self._flags.set(start.row, share > 0)
        if share > 0:
            self._log_share[start.row] = np.log(share)

    def release(self, row: int) -> None:
        self._flags.set(row, False)

    def wanted(self, layout: Layout) -> bool:
        return self._flags.select(layout) is not None

    def apply(self, scaled: torch.Tensor, layout: Layout) -> None:
        subset = self._flags.select(layout)
        if subset is None:
            return
        log_share = layout.once(self, lambda: layout.values(self._log_share))
        part = subset.take(scaled)
        floor = part.amax(dim=1, keepdim=True) + subset.take(log_share)
        part.masked_fill_(part < floor, -torch.inf)
        subset.put(scaled, part)
