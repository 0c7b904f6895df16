"""How a layer's weights are divided among the ranks of a tensor-parallel group, and what ranks tell each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank's place in a group (Megatron-style division, arXiv 1909.08053). The default is a group of one."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def gather_last(self, x: Tensor) -> Tensor:
        """Concatenate the ranks' last axes, in rank order."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def divide(self, number: int, what: str) -> int:
        """``number / size``, which must be whole."""
        if number % self.size:
            raise ValueError(f"{what} ({number}) is not divisible by tensor_parallel ({self.size}).")
        return number // self.size


def shard_slice(full: int, count: int, index: int) -> slice:
    """Part ``index`` of ``count`` equal parts of an axis of length ``full``; the last may be shorter."""
    size = -(-full // count)
    return slice(min(index * size, full), min((index + 1) * size, full))
