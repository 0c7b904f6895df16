"""Guessing as CUDA graphs: all steps of a guess in one launch, for a few batch sizes and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from octavo.contracts.proposer import DeviceProposer
from octavo.run.capture import run_aside
from octavo.run.graphs import LENGTHS, graph_sizes
from octavo.run.guess_ends import GuessEnds, Place

_LARGEST: Final = 64  # rows; where more decode, guessing rarely pays


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    ends: GuessEnds
    guesses: Tensor


class GuessGraphs:
    """A device proposer whose guesses are replayed where one was captured."""

    def __init__(self, proposer: DeviceProposer, place: Place, device: torch.device) -> None:
        self._proposer, self._place, self._device = proposer, place, device
        sizes = [size for size in graph_sizes(place.rows.max_rows) if size <= _LARGEST]
        self._counts = sorted({min(length, proposer.max_tokens) for length in LENGTHS})
        self._captured: dict[tuple[int, int], _Captured] = {}
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(sizes):
            for count in reversed(self._counts):
                self._captured[size, count] = self._capture(size, count, pool)
        self._sizes = sizes

    def propose(self, ends: GuessEnds, count: int) -> Tensor:
        """See :meth:`octavo.contracts.proposer.DeviceProposer.propose`; valid until the next call."""
        rows = len(ends.numbers)
        size = next((size for size in self._sizes if size >= rows), None)
        length = next((length for length in self._counts if length >= count), None)
        if size is None or length is None:
            return self._proposer.propose(ends, count)
        captured = self._captured[size, length]
        captured.ends.fill(ends)
        captured.graph.replay()
        return captured.guesses[:rows, :count]

    def _capture(self, size: int, count: int, pool: Any) -> _Captured:
        ends = _blank(self._place, size, self._proposer.carried_like, self._device)
        run_aside(self._device, lambda: self._proposer.propose(ends, count))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            guesses = self._proposer.propose(ends, count)
        return _Captured(graph, ends, guesses)


def _blank(place: Place, size: int, carried_like: Tensor | None, device: torch.device) -> GuessEnds:
    """Ends of ``size`` padding rows, in tensors of their own."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    carried = None if carried_like is None else carried_like.new_zeros((size, *carried_like.shape[1:]))
    numbers = zeros(size).fill_(place.rows.max_rows)
    return GuessEnds(place, numbers, zeros(size), zeros(size, 2), carried, zeros(size), drawn=True)
