"""top_k and top_p: only the most probable tokens stay; with both, top_p is of what top_k left.

Both are a floor under the logits. A token as probable as the least probable one kept is kept too, so that the
result depends neither on the order in which equals are sorted nor on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import Layout, RowFlags, Subset, upload

MOST_RANKED: Final = 1024  # up to here finding the largest is cheaper than sorting the vocabulary
_CPU_WIDTH: Final = 1024  # a nucleus is nearly always found among so many of the largest
_FIXED: Final = 2.0**40  # unit of the integers that stand for probabilities


@dataclass(frozen=True, slots=True, eq=False)
class _Limits:
    """Rows treated alike: their places among the truncated rows, and k, p as columns [m, 1]."""

    subset: Subset
    top_k: torch.Tensor  # int64; the vocabulary's size where off
    top_p: torch.Tensor | None  # float64; None where no row of these has it
    most: int  # largest top_k


class TopKTopP:
    """Rows with a small top_k need its k largest logits; others are sorted."""

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._flags = RowFlags(max_rows)
        self._top_k = np.full(max_rows, vocab_size, np.int64)
        self._top_p = np.ones(max_rows, np.float64)

    def admit(self, start: RowStart) -> None:
        top_k, top_p = start.params.top_k, start.params.top_p
        self._top_k[start.row] = min(top_k, self._vocab_size) if top_k > 0 else self._vocab_size
        self._top_p[start.row] = top_p
        self._flags.set(start.row, top_p < 1 or 0 < top_k < self._vocab_size)

    def release(self, row: int) -> None:
        self._flags.set(row, False)

    def wanted(self, layout: Layout) -> bool:
        return self._flags.select(layout) is not None

    def apply(self, scaled: torch.Tensor, layout: Layout) -> None:
        subset = self._flags.select(layout)
        if subset is None:
            return
        ranked, deep, nucleus = layout.once(self, lambda: self._classes(subset))
        part = subset.take(scaled)
        floor = torch.empty((len(part), 1), dtype=part.dtype, device=part.device)
        for limits in (ranked, deep):
            if limits is not None:
                largest = _largest(limits.subset.take(part), limits.most)
                _set(floor, limits, _floor(largest, limits.top_k, limits.top_p))
        if nucleus is not None and nucleus.top_p is not None:
            _set(floor, nucleus, _nucleus_floor_cpu(nucleus.subset.take(part), nucleus.top_p))
        part.masked_fill_(part < floor, -torch.inf)
        subset.put(scaled, part)

    def _classes(self, subset: Subset) -> tuple[_Limits | None, _Limits | None, _Limits | None]:
        """The rows with a small top_k; those to sort; and, on the CPU, those with top_p alone."""
        inner = Layout(subset.rows, self._device)
        top_k = self._top_k[subset.rows]
        ranked = top_k <= min(MOST_RANKED, self._vocab_size - 1)
        nucleus = (top_k == self._vocab_size) & on_cpu(self._device)
        deep = ~(ranked | nucleus)
        return (
            self._limits(inner.subset(ranked)),
            self._limits(inner.subset(deep)),
            self._limits(inner.subset(nucleus)),
        )

    def _limits(self, subset: Subset | None) -> _Limits | None:
        if subset is None:
            return None
        top_k, top_p = self._top_k[subset.rows], self._top_p[subset.rows]
        return _Limits(
            subset=subset,
            top_k=upload(top_k, self._device).unsqueeze(1),
            top_p=upload(top_p, self._device).unsqueeze(1) if (top_p < 1).any() else None,
            most=int(top_k.max()),
        )


def _set(floor: torch.Tensor, limits: _Limits, part: torch.Tensor) -> None:
    floor.index_copy_(0, limits.subset.device_index, part)


def _floor(values: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor | None) -> torch.Tensor:
    """The smallest value kept, [m, 1], of ``values`` [m, w], each row's largest in falling order."""
    kept = torch.arange(values.shape[1], device=values.device) < top_k
    if top_p is not None:
        mass = _mass(values) * kept
        reached = mass.cumsum(dim=1)
        kept &= (reached - mass) < top_p * reached[:, -1:]
    return _last(values, kept)


def _last(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The last value of each row's ``kept``, which are its first ones."""
    return values.gather(1, (kept.sum(dim=1, keepdim=True) - 1).clamp_(min=0))


def _mass(values: torch.Tensor) -> torch.Tensor:
    """Probabilities of falling ``values``, not normalised, in integers: their sums are exact in any order."""
    return (values - values[:, :1]).exp_().mul_(_FIXED).to(torch.int64)


def on_cpu(device: torch.device) -> bool:
    """Whether numpy may look at a tensor there; NumPy's vector sort takes a tenth of torch's time."""
    return device.type == "cpu"


def _largest(values: torch.Tensor, width: int) -> torch.Tensor:
    """The ``width`` largest of each row of ``values``, falling."""
    if not on_cpu(values.device):
        if width <= MOST_RANKED:
            return values.topk(width, dim=1).values
        return values.sort(dim=1, descending=True).values[:, :width]
    array = values.numpy()
    if width < array.shape[1]:
        array = np.partition(array, array.shape[1] - width, axis=1)[:, -width:]
    return torch.from_numpy(np.sort(array, axis=1)).flip(1)


def _nucleus_floor_cpu(values: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The floor of top_p alone. A row is sorted whole only where its largest values do not reach top_p.

    Each row's result depends on that row only: no sum here runs over rows or splits by their number.
    """
    width = min(_CPU_WIDTH, values.shape[1])
    largest = _largest(values, width)
    total = _FIXED / torch.softmax(values, dim=1).amax(dim=1, keepdim=True).double()
    mass = _mass(largest)
    reached = mass.cumsum(dim=1)
    floor = _last(largest, (reached - mass) < top_p * total)
    short = np.flatnonzero((reached[:, -1:] < top_p * total).numpy())
    if len(short):
        rows = torch.from_numpy(short)
        everything = torch.full_like(rows, values.shape[1]).unsqueeze(1)
        floor[rows] = _floor(_largest(values[rows], values.shape[1]), everything, top_p[rows])
    return floor
