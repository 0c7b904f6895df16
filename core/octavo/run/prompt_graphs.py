"""Short prompts as CUDA graphs: the first token of a lone request, without the host's hundreds of launches.

A step that computes the last part of one prompt, up to 256 tokens, is replayed in the smallest graph that holds it.
Tokens left over are computed and forgotten: they have no place in the cache, and no token sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import AttentionBackend, StepBatch
from octavo.contracts.executor import StepPlan
from octavo.contracts.model import CausalLM
from octavo.run.capture import run_aside
from octavo.run.rows import Rows
from octavo.run.step import Samples, StepInputs

LENGTHS: Final = (32, 64, 128, 256)
_HEAD: Final = 3  # numbers before the tokens: row, position of the first token, tokens


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor  # int64 [3 + length]
    batch: StepBatch
    hidden: Tensor
    logits: Tensor  # float32 [1, vocab], of the last token


class PromptGraphs:
    """Captured prompts of one model that uses no adapters and guesses nothing."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        caches: Sequence[Tensor],
        rows: Rows,
        block_size: int,
        device: torch.device,
        longest: int,
    ) -> None:
        self._model, self._attention, self._caches = model, attention, caches
        self._rows, self._block_size, self._device = rows, block_size, device
        pool = torch.cuda.graph_pool_handle()
        lengths = [length for length in LENGTHS if length <= longest]
        # A window's tiles begin behind the end of a short prompt's, which not every kernel minds.
        windowed = any(spec.sliding_window for spec in model.attention_layers)
        self._captured = {} if windowed else {length: self._capture(length, pool) for length in reversed(lengths)}

    def covers(self, plan: StepPlan) -> bool:
        """Whether the plan is the end of one prompt, all of it known to the host, and a graph is long enough."""
        if len(plan.rows) != 1 or plan.drafts or not plan.samples[0] or plan.counts[0] == 1:
            return False
        known = self._rows.known[plan.rows[0]]
        return plan.counts[0] <= max(self._captured, default=0) and plan.positions[0] + plan.counts[0] <= known

    def run(self, plan: StepPlan) -> tuple[StepInputs, Tensor, Sequence[Tensor], Tensor]:
        """As :meth:`octavo.run.graphs.DecodeGraphs.run`."""
        row, first, count = plan.rows[0], plan.positions[0], plan.counts[0]
        captured = self._captured[min(length for length in self._captured if length >= count)]
        host = np.zeros(len(captured.inputs), np.int64)
        host[:_HEAD] = row, first, count
        host[_HEAD : _HEAD + count] = self._rows.tokens[row, first : first + count]
        captured.inputs.copy_(torch.from_numpy(host).pin_memory(), non_blocking=True)
        captured.graph.replay()
        index = np.zeros(1, np.int64)
        samples = Samples(index, np.array([row]), captured.inputs[:1], np.array([first + count]))
        step = StepInputs(captured.inputs[_HEAD:], captured.batch, samples, captured.inputs[2:3] - 1)
        return step, captured.hidden, (), captured.logits

    def _capture(self, length: int, pool: Any) -> _Captured:
        inputs = torch.zeros(_HEAD + length, dtype=torch.int64, device=self._device)
        inputs[0], inputs[2] = self._rows.max_rows, length
        # What attention plans on the host is made here, once; the tensors that it looks at are filled in the graph.
        batch = gather_prompt(inputs, self._rows, self._block_size)
        plan = self._attention.plan(batch)
        run_aside(self._device, lambda: self._forward(inputs, batch, plan))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            _fill(batch, gather_prompt(inputs, self._rows, self._block_size))
            hidden, logits = self._forward(inputs, batch, plan)
        return _Captured(graph, inputs, batch, hidden, logits)

    def _forward(self, inputs: Tensor, batch: StepBatch, plan: Any) -> tuple[Tensor, Tensor]:
        hidden = self._model.forward(inputs[_HEAD:], batch, plan, self._caches)
        return hidden, self._model.logits(hidden.index_select(0, inputs[2:3] - 1))


def gather_prompt(inputs: Tensor, rows: Rows, block_size: int) -> StepBatch:
    """The batch of one prompt padded to a graph's length, from ``inputs`` int64 [3 + length] on the device: the
    row, the position of its first token here, the number of tokens, and the tokens."""
    row, first, count = inputs[0:1], inputs[1:2], inputs[2:3]
    length = len(inputs) - _HEAD
    place = torch.arange(length, device=inputs.device)
    positions = (first + place).clamp(max=rows.max_length - 1)
    tables = rows.device_tables.index_select(0, row)
    blocks = tables[0].gather(0, positions // block_size).long()
    slots = (blocks * block_size + positions % block_size).masked_fill(place >= count, -1)
    return StepBatch(
        num_tokens=length,
        num_rows=1,
        decodes=0,
        positions=positions,
        slots=slots,
        block_tables=tables,
        seq_lens=(first + count).int(),
        query_starts=torch.cat((torch.zeros_like(count), count)).int(),
        seq_lens_host=np.array([length]),
        query_lens_host=np.array([length]),
        block_tables_host=np.zeros((1, 1), np.int32),
    )


def _fill(batch: StepBatch, fresh: StepBatch) -> None:
    for name in ("positions", "slots", "block_tables", "seq_lens", "query_starts"):
        getattr(batch, name).copy_(getattr(fresh, name))
