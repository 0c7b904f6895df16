"""Decode steps as CUDA graphs: one launch a step instead of hundreds.

A graph is captured for each of a few batch sizes, largest first, all in one memory pool. Its only inputs are three
numbers a row: the row, the position of its token, and the token if the host knows it. Everything else is gathered
on the device from the permanent rows, so that a step costs the host one small copy. A step runs in the smallest
graph that holds it; the rows left over point at the padding row, with position -1. Where there are adapters each
size has two graphs, so that a step of the base model alone does not pay for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import AttentionBackend, StepBatch
from octavo.contracts.executor import StepPlan
from octavo.contracts.model import CausalLM
from octavo.run.adapters import NoAdapters
from octavo.run.rows import Rows
from octavo.run.step import Samples

LARGEST = 1024


def graph_sizes(max_sequences: int) -> list[int]:
    """Batch sizes to capture: fine where a step is cheap, coarser above, up to ``max_sequences`` or 1,024."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, LARGEST + 1, 64)]
    top = min(max_sequences, LARGEST)
    return [size for size in sizes if size < top] + [top]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor  # int64 [3, size]: rows, positions, known tokens (-1: the row's last sampled one)
    logits: Tensor  # float32 [size, vocab]


class DecodeGraphs:
    """Captured decode steps of one model."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        caches: Sequence[Tensor],
        rows: Rows,
        block_size: int,
        device: torch.device,
        adapters: NoAdapters | None = None,
    ) -> None:
        self._model, self._attention, self._caches = model, attention, caches
        self._rows, self._block_size, self._device = rows, block_size, device
        self._adapters = NoAdapters() if adapters is None else adapters
        self._captured: dict[tuple[int, bool], _Captured] = {}
        pool = torch.cuda.graph_pool_handle()
        sizes = graph_sizes(rows.max_rows)
        for size in reversed(sizes):
            for adapted in self._adapters.variants:
                self._captured[size, adapted] = self._capture(size, adapted, pool)
        self._sizes = np.array(sizes)

    def covers(self, plan: StepPlan) -> bool:
        """Whether all of the plan's rows compute one token and sample after it, and a graph is large enough."""
        fits = len(plan.rows) <= self._sizes[-1] and max(plan.counts) == 1 and all(plan.samples)
        return fits and self._adapters.replays(plan)

    def run(self, plan: StepPlan) -> tuple[Tensor, Samples]:
        """Replay the step: its logits float32 [rows, vocab], valid until the next replay, and what to sample."""
        count = len(plan.rows)
        size = int(self._sizes[np.searchsorted(self._sizes, count)])
        captured = self._captured[size, self._adapters.uses(plan)]
        numbers = np.asarray(plan.rows, np.int64)
        positions = np.asarray(plan.positions, np.int64)
        host = np.empty(captured.inputs.shape, np.int64)
        host[0, count:], host[1:, count:] = self._rows.max_rows, -1
        host[0, :count], host[1, :count] = numbers, positions
        known = positions < self._rows.known[numbers]
        host[2, :count] = np.where(known, self._rows.tokens[numbers, positions], -1)
        captured.inputs.copy_(torch.from_numpy(host).pin_memory(), non_blocking=True)
        captured.graph.replay()
        samples = Samples(np.arange(count), numbers, captured.inputs[0, :count], positions + 1)
        return captured.logits[:count], samples

    def _capture(self, size: int, adapted: bool, pool: Any) -> _Captured:
        inputs = torch.full((3, size), -1, dtype=torch.int64, device=self._device)
        inputs[0] = self._rows.max_rows
        # Once outside: kernels are compiled and libraries make their workspaces, neither of which may be captured.
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            self._step(inputs, adapted)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        shared = self._captured.get((size, not adapted))
        with torch.cuda.graph(graph, pool=pool):
            logits = self._step(inputs, adapted)
            if shared is not None:  # logits are large, and of one graph at a time
                logits = shared.logits.copy_(logits)
        return _Captured(graph, inputs, logits)

    def _step(self, inputs: Tensor, adapted: bool) -> Tensor:
        size = inputs.shape[1]
        rows, stored, known = inputs[0], inputs[1], inputs[2]
        tables = self._rows.device_tables.index_select(0, rows)
        positions = stored.clamp_min(0)
        blocks = tables.gather(1, (positions // self._block_size).unsqueeze(1)).squeeze(1)
        slots = blocks.long() * self._block_size + positions % self._block_size
        ones = np.ones(size, np.int64)
        batch = StepBatch(
            num_tokens=size,
            num_rows=size,
            decodes=size,
            positions=positions,
            slots=slots.masked_fill(stored < 0, -1),
            block_tables=tables,
            seq_lens=(stored + 1).int(),
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=self._device),
            seq_lens_host=ones,
            query_lens_host=ones,
            block_tables_host=np.zeros((size, 1), np.int32),
        )
        ids = torch.where(known < 0, self._rows.last_tokens[rows], known)
        self._adapters.begin_rows(rows, adapted)
        hidden = self._model.forward(ids, batch, self._attention.plan(batch), self._caches)
        return self._model.logits(hidden)
