"""Device memory that launches share."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; elsewhere a small number."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


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
