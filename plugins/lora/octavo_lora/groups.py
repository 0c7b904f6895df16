"""Which rows of a step use which slot, for plain torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one slot: their indices in the step (int64, on the device), or ``None`` for all of them."""

    slot: int
    index: Tensor | None


def group_rows(host: np.ndarray, device: torch.device, slots: Collection[int] | None = None) -> list[Group]:
    """Groups of the slots that ``host`` int64 [rows] names, but for 0; of ``slots`` alone where given."""
    used = [int(slot) for slot in np.unique(host) if slot and (slots is None or slot in slots)]
    if len(used) == 1 and bool((host == used[0]).all()):
        return [Group(used[0], None)]
    return [Group(slot, _sent(np.flatnonzero(host == slot), device)) for slot in used]


def _sent(index: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(index)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
