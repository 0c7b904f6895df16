"""The permanent rows: what a runner remembers of each running request, by row number.

A request keeps its row for its life; steps gather from rows by index. The host arrays are the truth for planning;
``last_tokens`` lives on the device, so that a sampled token is the next step's input without visiting the host.
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.contracts.executor import RowStart, StepPlan


class Rows:
    """Arrays of ``max_rows`` rows."""

    def __init__(self, max_rows: int, max_length: int, block_size: int, device: torch.device) -> None:
        width = -(-max_length // block_size)
        self.tokens = np.zeros((max_rows, max_length + 1), np.int64)  # paged in by the OS as it is used
        self.known = np.zeros(max_rows, np.int64)  # tokens of the row that the host knows
        self.prompt_lengths = np.zeros(max_rows, np.int64)
        self.block_tables = np.zeros((max_rows, width), np.int32)
        self.last_tokens = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.prompt_logprobs: dict[int, int] = {}

    def apply(self, plan: StepPlan) -> None:
        """Take over what the plan says has changed: rows ended and started, blocks added."""
        for row in plan.ends:
            self.prompt_logprobs.pop(row, None)
        for start in plan.starts:
            self._start(start)
        for row, index, blocks in plan.blocks:
            self.block_tables[row, index : index + len(blocks)] = blocks

    def _start(self, start: RowStart) -> None:
        row, count = start.row, len(start.tokens)
        self.tokens[row, :count] = start.tokens
        self.known[row] = count
        self.prompt_lengths[row] = start.prompt_length
        if start.params.prompt_logprobs is not None:
            self.prompt_logprobs[row] = start.params.prompt_logprobs
