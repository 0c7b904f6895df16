"""What comes before a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Callable

import torch


def run_aside(device: torch.device, step: Callable[[], object]) -> None:
    """Run ``step`` once on a stream of its own: kernels are compiled and libraries make their workspaces, neither
    of which may be captured. The current stream waits for it."""
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        step()
    current.wait_stream(side)
