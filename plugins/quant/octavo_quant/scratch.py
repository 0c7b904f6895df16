"""What launches share: device memory, and how work is cut."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from octavo.early import can_launch_early, early_options


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; elsewhere a small number."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@lru_cache
def early(device: torch.device) -> dict[str, Any]:
    """Options of an early launch, where the device can."""
    return early_options(device.type == "cuda" and can_launch_early(torch.cuda.get_device_capability(device)))


def split(pairs: int, steps: int, processors: int) -> tuple[int, int]:
    """Programs along the inputs of a product of ``pairs`` tiles, and the ``steps`` of each: enough of them for two
    a processor, none with less than four steps to read."""
    wanted = -(-2 * processors // pairs) if pairs < 1.5 * processors else 1
    share = -(-steps // max(1, min(wanted, steps // 4)))
    return -(-steps // share), share


def reserve(device: torch.device) -> None:
    """Make it before anything is captured: memory that a graph's capture makes belongs to that graph."""
    if device.type == "cuda":
        counters(device, 1)


def counters(device: torch.device, count: int) -> torch.Tensor:
    """At least ``count`` int32 that are 0 between launches. Never given back: captured graphs hold the address."""
    return _counters(device, max(4096, 1 << (count - 1).bit_length()))


@lru_cache
def _counters(device: torch.device, size: int) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.zeros(size, dtype=torch.int32, device=device)
