"""From a plan to a step's tensors: everything is gathered from the rows with whole-batch numpy work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.executor import StepPlan
from octavo.run.rows import Rows


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's batch, its token ids, and which positions are sampled."""

    token_ids: Tensor  # int64 [tokens]
    batch: StepBatch
    sampled: np.ndarray  # indices of the plan's rows that sample
    sampled_rows: np.ndarray  # their row numbers
    sampled_tokens: Tensor  # int64: index of each one's last token in the batch
    sampled_positions: np.ndarray  # position in its sequence of the token being sampled


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
    tables = rows.block_tables[numbers, :width]
    slots = rows.block_tables[of_token, positions // block_size].astype(np.int64) * block_size
    slots += positions % block_size
    decodes = int(np.searchsorted(counts > 1, True)) if counts[-1] > 1 else len(counts)
    batch = StepBatch(
        num_tokens=int(starts[-1]),
        num_rows=len(numbers),
        decodes=decodes,
        positions=_tensor(positions, device),
        slots=_tensor(slots, device),
        block_tables=_tensor(tables, device),
        seq_lens=_tensor(lengths.astype(np.int32), device),
        query_starts=_tensor(starts.astype(np.int32), device),
        seq_lens_host=lengths,
        query_lens_host=counts,
        block_tables_host=tables,
    )
    sampled = np.flatnonzero(plan.samples)
    return StepInputs(
        token_ids=_token_ids(rows, of_token, positions, device),
        batch=batch,
        sampled=sampled,
        sampled_rows=numbers[sampled],
        sampled_tokens=_tensor(starts[1:][sampled] - 1, device),
        sampled_positions=lengths[sampled],
    )


def _token_ids(rows: Rows, of_token: np.ndarray, positions: np.ndarray, device: torch.device) -> Tensor:
    """Host-known ids; where a token is so far only on the device, the row's last sampled one."""
    unknown = positions >= rows.known[of_token]
    ids = _tensor(np.where(unknown, 0, rows.tokens[of_token, positions]), device)
    if unknown.any():
        last = rows.last_tokens[_tensor(of_token, device)]
        ids = torch.where(_tensor(unknown, device), last, ids)
    return ids


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
