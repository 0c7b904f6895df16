"""Types by the names that configurations use."""

from __future__ import annotations

import torch

_EIGHT_BITS = {"fp8_e4m3": torch.float8_e4m3fn}


def torch_dtype(name: str) -> torch.dtype:
    """``"bfloat16"`` to ``torch.bfloat16``, ``"fp8_e4m3"`` to ``torch.float8_e4m3fn``."""
    found = _EIGHT_BITS.get(name) or getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
