"""The permanent rows: what a runner remembers of each running request, by row number.

A request keeps its row for its life; steps gather from rows by index. The host arrays are the truth for planning.
``last_tokens`` and ``device_tables`` live on the device: a sampled token is the next step's input without visiting
the host, and block tables are written by difference. ``guesses`` are what the device proposes to come behind them.
Row ``max_rows`` belongs to nobody: padding points there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from octavo.contracts.executor import RowStart, StepPlan
from octavo.run.upload import upload

_BEHIND: Final = 8
"""Positions behind the last possible one for which block tables have entries: queries left over read them."""


class Rows:
    """Arrays of ``max_rows`` rows, and one for padding."""

    def __init__(
        self, max_rows: int, max_length: int, block_size: int, device: torch.device, longest_guess: int = 0
    ) -> None:
        width = -(-(max_length + _BEHIND) // block_size)
        self.max_rows, self.max_length, self.width, self._device = max_rows, max_length, width, device
        self.tokens = np.zeros((max_rows, max_length + 1), np.int64)  # paged in by the OS as it is used
        self.known = np.zeros(max_rows, np.int64)  # tokens of the row that the host knows
        self.prompt_lengths = np.zeros(max_rows, np.int64)
        self.generations = np.zeros(max_rows, np.int64)  # requests that the row has had
        self.block_tables = np.zeros((max_rows + 1, width), np.int32)
        self.last_tokens = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self.guesses = torch.zeros((max_rows + 1, longest_guess), dtype=torch.int64, device=device)
        host_tables = torch.from_numpy(self.block_tables)
        self.device_tables = host_tables if device.type == "cpu" else host_tables.to(device)
        self.prompt_logprobs: dict[int, int] = {}

    def apply(self, plan: StepPlan) -> None:
        """Take over what the plan says has changed: rows ended and started, blocks added."""
        for row in plan.ends:
            self.prompt_logprobs.pop(row, None)
        for start in plan.starts:
            self._start(start)
        for row, (position, tokens) in plan.behind.items():
            self.tokens[row, position : position + len(tokens)] = tokens
            self.known[row] = max(self.known[row], position + len(tokens))
        for row, index, blocks in plan.blocks:
            self.block_tables[row, index : index + len(blocks)] = blocks
        if plan.blocks and self._device.type != "cpu":
            self._send_blocks(plan)

    def _start(self, start: RowStart) -> None:
        row, count = start.row, len(start.tokens)
        self.tokens[row, :count] = start.tokens
        self.known[row] = count
        self.generations[row] += 1
        self.prompt_lengths[row] = start.prompt_length
        if start.params.prompt_logprobs is not None:
            self.prompt_logprobs[row] = start.params.prompt_logprobs

    def _send_blocks(self, plan: StepPlan) -> None:
        counts = [len(blocks) for _, _, blocks in plan.blocks]
        firsts = np.array([row * self.width + index for row, index, _ in plan.blocks], np.int64)
        ends = np.cumsum(counts)
        where = np.arange(ends[-1]) + np.repeat(firsts - (ends - counts), counts)
        blocks = np.array([block for _, _, added in plan.blocks for block in added], np.int64)
        places, values = upload((where, blocks), self._device)
        self.device_tables.view(-1).index_copy_(0, places, values.int())
