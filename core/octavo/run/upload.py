"""Host arrays to the device: pinned, asynchronous, few copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """int64 arrays [n] to tensors in one copy. The host does not wait; pinned memory is reused once it was read."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type != "cpu":
        joined = (joined.pin_memory() if device.type == "cuda" else joined).to(device, non_blocking=True)
    sizes = [len(array) for array in arrays]
    return list(torch.split(joined, sizes))
