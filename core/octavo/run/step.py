"""From a plan to a step's tensors: everything is gathered from the rows with whole-batch numpy work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.executor import StepPlan
from octavo.run.rows import Rows
from octavo.run.upload import upload


@dataclass(frozen=True, slots=True)
class Samples:
    """The rows of a step that sample, in the order of the plan."""

    index: np.ndarray  # indices of the plan's rows
    rows: np.ndarray  # their row numbers
    device_rows: Tensor  # the same, on the device
    positions: np.ndarray  # position in its sequence of the token being sampled


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's batch and token ids."""

    token_ids: Tensor  # int64 [tokens]
    batch: StepBatch
    samples: Samples
    sampled_tokens: Tensor  # int64: index in the batch of each sampling row's last token


def build_step(plan: StepPlan, rows: Rows, block_size: int, device: torch.device) -> StepInputs:
    """Gather the inputs of ``plan`` by row number."""
    numbers = np.asarray(plan.rows, np.int64)
    counts = np.asarray(plan.counts, np.int64)
    first = np.asarray(plan.positions, np.int64)
    starts = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    of_token = np.repeat(numbers, counts)
    positions = np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)
    lengths = first + counts
    width = -(-int(lengths.max()) // block_size)
    slots = rows.block_tables[of_token, positions // block_size].astype(np.int64) * block_size
    slots += positions % block_size
    unknown = positions >= rows.known[of_token]
    known = np.where(unknown, 0, rows.tokens[of_token, positions])
    index = np.flatnonzero(plan.samples)
    sent = upload(
        (known, positions, slots, numbers, lengths, starts, starts[1:][index] - 1, numbers[index]), device
    )
    ids = sent[0]
    if unknown.any():
        late, of_late = upload((np.flatnonzero(unknown), of_token[unknown]), device)
        ids = ids.index_copy(0, late, rows.last_tokens[of_late])
    batch = StepBatch(
        num_tokens=int(starts[-1]),
        num_rows=len(numbers),
        decodes=int(np.searchsorted(counts > 1, True)) if counts[-1] > 1 else len(counts),
        positions=sent[1],
        slots=sent[2],
        block_tables=rows.device_tables.index_select(0, sent[3])[:, :width],
        seq_lens=sent[4].int(),
        query_starts=sent[5].int(),
        seq_lens_host=lengths,
        query_lens_host=counts,
        block_tables_host=rows.block_tables[numbers, :width],
    )
    samples = Samples(index, numbers[index], sent[7], lengths[index])
    return StepInputs(ids, batch, samples, sent[6])
