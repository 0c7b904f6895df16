"""Early launches: a kernel may start, and fetch what does not depend on others, before the one ahead has ended.

CUDA calls it programmatic dependent launch; it needs Hopper. A kernel with ``PDL`` waits with ``gdc_wait`` before
it touches anything that the kernels ahead read or write, and only then lets the next one start: so all kernels but
the one directly ahead have ended when it begins.
"""

from __future__ import annotations

from typing import Any

from octavo.records import Context


def can_launch_early(ctx: Context) -> bool:
    """Whether the context's device can."""
    return ctx.device.capability is not None and ctx.device.capability >= (9, 0)


def launch_options(early: bool) -> dict[str, Any]:
    """Options of the launch; the interpreter and older devices have none."""
    return {"launch_pdl": True} if early else {}
