"""From a plan to a step's tensors: everything is gathered from the rows with whole-batch numpy work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.executor import GUESSED, StepPlan
from octavo.run.rows import Rows
from octavo.run.upload import upload
from octavo.run.verify import Drafts


@dataclass(frozen=True, slots=True)
class Samples:
    """What a step samples, in the order of the plan. A row with a draft comes once for each of its positions."""

    index: np.ndarray  # indices of the plan's rows
    rows: np.ndarray  # their row numbers
    device_rows: Tensor  # the same, on the device
    positions: np.ndarray  # position in its sequence of the token being sampled
    drafts: Drafts | None = None


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's batch and token ids."""

    token_ids: Tensor  # int64 [tokens]
    batch: StepBatch
    samples: Samples
    sampled_tokens: Tensor  # int64: index in the batch of each token after which one is sampled
    known_next: np.ndarray | None = None  # int64 [tokens]: the host's token behind each; none where all are sampled


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
    for place, draft in plan.drafts.items():
        behind = slice(starts[place + 1] - len(draft), starts[place + 1])
        known[behind], unknown[behind] = draft, False
    index = np.flatnonzero(plan.samples)
    drafts, back = Drafts.of(plan, index, rows, device), np.zeros(1, np.int64)
    if drafts is not None:
        index = np.repeat(index, drafts.lengths + 1)
        back = np.repeat(drafts.lengths, drafts.lengths + 1) - drafts.places
    sampled = starts[1:][index] - 1 - back
    sent = upload((known, positions, slots, numbers, lengths, starts, sampled, numbers[index]), device)
    ids = sent[0]
    if unknown.any():
        late, of_late = upload((np.flatnonzero(unknown), of_token[unknown]), device)
        ids = ids.index_copy(0, late, rows.last_tokens[of_late])
    guessed = np.flatnonzero(known == GUESSED)
    if len(guessed):
        places = positions[guessed] - first[np.repeat(np.arange(len(numbers)), counts)[guessed]] - 1
        at, of_guess, in_guess = upload((guessed, of_token[guessed], places), device)
        ids = ids.index_copy(0, at, rows.guesses[of_guess, in_guess])
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
    samples = Samples(index, numbers[index], sent[7], lengths[index] - back, drafts)
    guessing = rows.guesses.shape[1] and len(index) < len(positions)
    known_next = rows.tokens[of_token, positions + 1] if guessing else None
    return StepInputs(ids, batch, samples, sent[6], known_next)
