"""Early launches: a kernel may start, and fetch what does not depend on others, before the one ahead has ended.

CUDA calls it programmatic dependent launch; it needs Hopper. A kernel with ``PDL`` waits with ``gdc_wait`` before
it touches anything that the kernels ahead read or write, and only then lets the next one start: so all kernels but
the one directly ahead have ended when it begins. For plugins whose kernels keep to this.
"""

from __future__ import annotations

from typing import Any


def can_launch_early(capability: tuple[int, int] | None) -> bool:
    """Whether a device can: its CUDA compute capability, ``None`` where it has none."""
    return capability is not None and capability >= (9, 0)


def early_options(early: bool) -> dict[str, Any]:
    """Options of a launch by name: the kernel's constant ``PDL``, and the launcher's option, which the interpreter
    and older devices do not have."""
    return {"PDL": True, "launch_pdl": True} if early else {"PDL": False}
