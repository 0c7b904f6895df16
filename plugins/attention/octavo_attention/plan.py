"""What all layers of a step share: which rows decode, and how the others are cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from octavo.contracts.attention import StepBatch

MAX_QUERIES = 8
"""Rows of up to this many query tokens, the same for all, go through the decode kernel."""


@dataclass(frozen=True, slots=True)
class WorkList:
    """Tiles of query tokens: int32 [count, 2] on the device, each a row and its first query token there."""

    pairs: torch.Tensor
    count: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Rows ``[0, decode_rows)`` bring ``queries`` tokens each; the rest, if any, is prefill.

    Work lists and runs are made when the first layer asks (they depend on its heads and window) and kept for the
    others.
    """

    batch: StepBatch
    decode_rows: int
    queries: int
    work: dict[int, WorkList] = field(default_factory=dict)
    runs: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    @property
    def decode_tokens(self) -> int:
        """Tokens at the start of the batch that belong to decode rows."""
        return self.decode_rows * self.queries

    def work_list(self, tokens: int) -> WorkList:
        """The prefill rows cut into tiles of ``tokens`` query tokens, longest work first."""
        if tokens not in self.work:
            batch = self.batch
            pairs = cut(batch.query_lens_host, batch.seq_lens_host, self.decode_rows, tokens)
            self.work[tokens] = WorkList(upload(pairs, batch.seq_lens.device), len(pairs))
        return self.work[tokens]


def make_plan(batch: StepBatch, max_queries: int = MAX_QUERIES) -> AttentionPlan:
    """Read a step's shape from its host arrays; nothing here depends on lengths while all rows decode."""
    lens = batch.query_lens_host[: batch.num_rows]
    queries = int(lens[0]) if len(lens) else 1
    if 1 < queries <= max_queries and bool((lens == queries).all()):
        return AttentionPlan(batch, batch.num_rows, queries)
    return AttentionPlan(batch, batch.decodes, 1)


def cut(query_lens: np.ndarray, seq_lens: np.ndarray, first_row: int, tokens: int) -> np.ndarray:
    """Tiles of rows from ``first_row`` on, int32 [tiles, 2], by falling number of keys to read."""
    queries = query_lens[first_row:].astype(np.int64)
    counts = -(-queries // tokens)
    rows = np.repeat(np.arange(first_row, first_row + len(counts)), counts)
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    firsts = (np.arange(len(rows)) - begins) * tokens
    keys = (seq_lens - query_lens)[rows] + firsts
    order = np.argsort(-keys, kind="stable")
    return np.stack([rows, firsts], axis=1)[order].astype(np.int32)


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy to the device without making the host wait for it: from pinned memory, where there is a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
