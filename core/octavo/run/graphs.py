"""Decode steps as CUDA graphs: one launch a step instead of hundreds.

A graph is captured for each of a few batch sizes, largest first, all in one memory pool; where tokens are guessed
ahead, small batches have graphs for several queries a row as well. Their only inputs are the row, the position of
its first token, and what the host knows of its tokens. Everything else is gathered on the device from the permanent
rows, so that a step costs the host one small copy. A step runs in the smallest graph that holds it; the rows left
over point at the padding row, with position -1, and queries left over are computed and forgotten. Where there are
adapters each shape has two graphs, so that a step of the base model alone does not pay for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import AttentionBackend, StepBatch
from octavo.contracts.executor import GUESSED, StepPlan
from octavo.contracts.model import CausalLM
from octavo.run.adapters import NoAdapters
from octavo.run.capture import run_aside
from octavo.run.rows import Rows
from octavo.run.step import Samples, StepInputs
from octavo.run.taps import forward_tapped
from octavo.run.upload import upload
from octavo.run.verify import Drafts

LARGEST: Final = 1024
LENGTHS: Final = (1, 2, 3, 5, 7)
"""Drafts for which verification is captured; others run in the next larger one."""

_MOST_VERIFIED: Final = 128  # tokens of a step with drafts; larger ones keep the device busy anyhow
_LAST, _NOBODY = -1, -3  # instead of a token's id: the row's last sampled one; no token


def graph_sizes(max_sequences: int) -> list[int]:
    """Batch sizes to capture: fine where a step is cheap, coarser above, up to ``max_sequences`` or 1,024."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, LARGEST + 1, 64)]
    top = min(max_sequences, LARGEST)
    return [size for size in sizes if size < top] + [top]


def verify_shapes(max_sequences: int, longest: int, most_queries: int) -> list[tuple[int, int]]:
    """(rows, queries a row) to capture for drafts of up to ``longest`` tokens, largest first."""
    queries = {min(length, longest) + 1 for length in LENGTHS} if longest else set()
    shapes = [
        (size, count)
        for count in queries
        if count <= most_queries
        for size in graph_sizes(max_sequences)
        if size * count <= _MOST_VERIFIED
    ]
    return sorted(shapes, key=lambda shape: (-shape[0] * shape[1], shape))


@dataclass(frozen=True, slots=True)
class _Computed:
    """What a captured step leaves behind, in tensors that the next replay overwrites."""

    token_ids: Tensor
    batch: StepBatch
    hidden: Tensor
    taps: Sequence[Tensor]
    logits: Tensor  # float32 [rows * queries, vocab]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor  # int64 [2 + queries, rows]: see ``step_inputs``
    computed: _Computed


class DecodeGraphs:
    """Captured decode steps of one model. ``most_queries`` is what every attention backend involved can capture."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        caches: Sequence[Tensor],
        rows: Rows,
        block_size: int,
        device: torch.device,
        adapters: NoAdapters | None = None,
        tap_layers: Sequence[int] = (),
        longest_draft: int = 0,
        most_queries: int = 1,
    ) -> None:
        self._model, self._attention, self._caches = model, attention, caches
        self._rows, self._block_size, self._device = rows, block_size, device
        self._adapters = NoAdapters() if adapters is None else adapters
        self._tap_layers = tap_layers
        self._counting = torch.arange(rows.max_rows, device=device)
        self._captured: dict[tuple[int, int, bool], _Captured] = {}
        pool = torch.cuda.graph_pool_handle()
        sizes = graph_sizes(rows.max_rows)
        plain = [(size, 1) for size in reversed(sizes)]
        shapes = [*plain, *verify_shapes(rows.max_rows, longest_draft, most_queries)]
        for size, queries in shapes:
            for adapted in self._adapters.variants:
                self._captured[size, queries, adapted] = self._capture(size, queries, adapted, pool)
        self._adapters.rest()
        self._shapes = sorted(shapes, key=lambda shape: (shape[1], shape[0]))

    def covers(self, plan: StepPlan) -> bool:
        """Whether all of the plan's rows compute one token and their draft, and a graph is large enough."""
        singles = plan.num_tokens == len(plan.rows) + sum(map(len, plan.drafts.values()))
        fits = singles and all(plan.samples) and self._shape(plan) is not None
        return fits and self._adapters.replays(plan)

    def run(self, plan: StepPlan) -> tuple[StepInputs, Tensor, Sequence[Tensor], Tensor]:
        """Replay the step: its inputs, hidden states, taps, and the logits float32 of the sampled positions. All of
        them are valid until the next replay."""
        shape = self._shape(plan)
        assert shape is not None
        captured = self._captured[*shape, self._adapters.uses(plan)]
        host = step_inputs(plan, self._rows, *shape)
        captured.inputs.copy_(torch.from_numpy(host).pin_memory(), non_blocking=True)
        captured.graph.replay()
        done = captured.computed
        step = inputs_of(plan, self._rows, shape[1], done.token_ids, done.batch, captured.inputs[0], self._counting)
        count = len(step.samples.index)
        full = count == len(plan.rows) * shape[1]
        logits = done.logits[:count] if full else done.logits.index_select(0, step.sampled_tokens)
        return step, done.hidden, done.taps, logits

    def _shape(self, plan: StepPlan) -> tuple[int, int] | None:
        rows, queries = len(plan.rows), max(plan.counts)
        return next((shape for shape in self._shapes if shape[0] >= rows and shape[1] >= queries), None)

    def _capture(self, size: int, queries: int, adapted: bool, pool: Any) -> _Captured:
        inputs = torch.full((2 + queries, size), _NOBODY, dtype=torch.int64, device=self._device)
        inputs[0], inputs[1] = self._rows.max_rows, -1
        run_aside(self._device, lambda: self._step(inputs, adapted))
        graph = torch.cuda.CUDAGraph()
        shared = self._captured.get((size, queries, not adapted))
        with torch.cuda.graph(graph, pool=pool):
            computed = self._step(inputs, adapted)
            if shared is not None:  # logits are large, and of one graph at a time
                computed = replace(computed, logits=shared.computed.logits.copy_(computed.logits))
        return _Captured(graph, inputs, computed)

    def _step(self, inputs: Tensor, adapted: bool) -> _Computed:
        ids, batch = gather_step(inputs, self._rows, self._block_size)
        self._adapters.begin_rows(inputs[0].repeat_interleave(len(inputs) - 2), adapted)
        plan = self._attention.plan(batch)
        hidden, taps = forward_tapped(self._model, ids, batch, plan, self._caches, self._tap_layers)
        return _Computed(ids, batch, hidden, taps, self._model.logits(hidden))


def step_inputs(plan: StepPlan, rows: Rows, size: int, queries: int) -> np.ndarray:
    """What a captured step of this shape reads, int64 [2 + queries, size]: the row, the position of its first
    token, and each token: its id, or what stands for it."""
    count = len(plan.rows)
    numbers, positions = np.asarray(plan.rows, np.int64), np.asarray(plan.positions, np.int64)
    host = np.full((2 + queries, size), _NOBODY, np.int64)
    host[0, count:], host[1, count:] = rows.max_rows, -1
    host[0, :count], host[1, :count] = numbers, positions
    known = positions < rows.known[numbers]
    host[2, :count] = np.where(known, rows.tokens[numbers, positions], _LAST)
    for index, draft in plan.drafts.items():
        host[3 : 3 + len(draft), index] = draft
    return host


def inputs_of(
    plan: StepPlan,
    rows: Rows,
    queries: int,
    token_ids: Tensor,
    batch: StepBatch,
    device_rows: Tensor,
    counting: Tensor,
) -> StepInputs:
    """A captured step's inputs as those of any other step. ``device_rows`` int64 [size]; ``counting`` int64: 0, 1,
    2 … for all rows."""
    count, device = len(plan.rows), token_ids.device
    numbers, first = np.asarray(plan.rows, np.int64), np.asarray(plan.positions, np.int64)
    if queries == 1:
        samples = Samples(np.arange(count), numbers, device_rows[:count], first + 1)
        return StepInputs(token_ids, batch, samples, counting[:count])
    counts = np.asarray(plan.counts, np.int64)
    drafts = Drafts.of(plan, np.arange(count), rows, device)
    index = np.repeat(np.arange(count), counts)
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    sampled, of_sample = upload((index * queries + places, numbers[index]), device)
    samples = Samples(index, numbers[index], of_sample, first[index] + places + 1, drafts)
    return StepInputs(token_ids, batch, samples, sampled)


def gather_step(inputs: Tensor, rows: Rows, block_size: int) -> tuple[Tensor, StepBatch]:
    """Token ids and batch of a step whose rows all bring the same number of queries, from ``step_inputs``."""
    queries, size = len(inputs) - 2, inputs.shape[1]
    numbers, first, tokens = inputs[0], inputs[1], inputs[2:].t()
    stored = first.unsqueeze(1) + torch.arange(queries, device=inputs.device)
    live = (first >= 0).unsqueeze(1) & (tokens != _NOBODY)
    positions = stored.clamp(0, rows.max_length - 1)
    tables = rows.device_tables.index_select(0, numbers)
    blocks = tables.gather(1, positions // block_size).long()
    slots = (blocks * block_size + positions % block_size).masked_fill(~live, -1)
    ids = torch.where(tokens == _LAST, rows.last_tokens[numbers].unsqueeze(1), tokens)
    if queries > 1 and rows.guesses.shape[1]:
        guesses = rows.guesses[numbers, : queries - 1]
        missing = queries - guesses.shape[1]
        ids = torch.where(ids == GUESSED, torch.nn.functional.pad(guesses, (1, missing - 1)), ids)
    ones = np.ones(size, np.int64)
    batch = StepBatch(
        num_tokens=size * queries,
        num_rows=size,
        decodes=size if queries == 1 else 0,
        positions=positions.reshape(-1),
        slots=slots.reshape(-1),
        block_tables=tables,
        seq_lens=torch.where(first < 0, 0, first + queries).int(),
        query_starts=torch.arange(0, size * queries + 1, queries, dtype=torch.int32, device=inputs.device),
        seq_lens_host=ones,
        query_lens_host=queries * ones,
        block_tables_host=np.zeros((size, 1), np.int32),
    )
    return ids.clamp_min(0).reshape(-1), batch
