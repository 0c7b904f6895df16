"""SwiGLU's gate."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.ahead import launch
from octavo.early import early_options

_BLOCK = 1024


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up_ptr + row * 2 * width + columns
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    stored = tl.load(at, mask=inside, other=0.0)
    gate = stored.to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    # Rounded between the two steps, as the reference does.
    activated = (gate / (1.0 + tl.exp(-gate))).to(stored.dtype).to(tl.float32)
    tl.store(out_ptr + row * width + columns, (activated * up).to(stored.dtype), mask=inside)


def silu_mul(gate_up: torch.Tensor, *, early: bool = False) -> torch.Tensor:
    """See :func:`octavo.ops.reference.silu_mul`; ``gate_up`` [tokens, 2 * n] contiguous."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = rows, triton.cdiv(width, _BLOCK)
        launch(_silu_mul_kernel, grid, gate_up, out, width, BLOCK=_BLOCK, num_warps=4, **early_options(early))
    return out
