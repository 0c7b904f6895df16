"""Tokens grouped by slot, cut into tiles of one slot each: made once a step, used by every layer.

On the host where it knows the slots; on the device, with shapes that depend on the number of tokens alone, while a
graph is captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiles:
    """``order`` int64: the tokens that have an adapter, those of a slot together. ``tiles`` int64 [count, 3]: slot,
    first and end in ``order`` of up to ``block`` tokens; slot 0 where there is nothing to do."""

    order: Tensor
    tiles: Tensor
    count: int
    block: int


def block_of(tokens: int) -> int:
    """Tokens a tile: few while rows decode, each with an adapter of its own; many for the chunks of prompts."""
    return 16 if tokens <= 256 else 32 if tokens <= 1024 else 64


def host_tiles(slots: np.ndarray, device: torch.device) -> Tiles | None:
    """From the slots of all tokens, int64 [tokens]; ``None`` where all use the base model."""
    count = int(np.count_nonzero(slots))
    if not count:
        return None
    block = block_of(count)
    order = np.argsort(slots, kind="stable")[-count:]
    used, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    pieces = -(-counts // block)
    total = int(pieces.sum())
    which = np.repeat(np.arange(len(used)), pieces)
    first = starts[which] + (np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * block
    last = np.minimum(first + block, (starts + counts)[which])
    joined = torch.from_numpy(np.concatenate([np.stack([used[which], first, last], 1).reshape(-1), order]))
    if device.type != "cpu":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return Tiles(joined[total * 3 :], joined[: total * 3].view(total, 3), total, block)


def device_tiles(slots: Tensor, most: int) -> Tiles:
    """The same on the device, from int64 [tokens] of slots up to ``most``. Nothing waits."""
    tokens = len(slots)
    block = block_of(tokens)
    count = tokens // block + min(most, tokens)
    grouped, order = torch.sort(slots, stable=True)
    edges = torch.searchsorted(grouped, torch.arange(1, most + 2, device=slots.device))
    starts, ends = edges[:-1], edges[1:]
    pieces = (ends - starts + (block - 1)) // block
    behind = pieces.cumsum(0)  # tiles up to and with each slot
    number = torch.arange(count, device=slots.device)
    which = torch.searchsorted(behind, number, right=True)
    real = which < most
    which = which.clamp_max(most - 1)
    first = starts[which] + (number - (behind - pieces)[which]) * block
    last = torch.minimum(first + block, ends[which])
    return Tiles(order, torch.stack([(which + 1) * real, first, last], 1), count, block)
