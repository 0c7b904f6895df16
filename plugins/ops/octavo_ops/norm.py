"""RMSNorm, alone or behind the addition to the residual stream: one row a program, one read and one write."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.ahead import launch
from octavo.early import early_options


@triton.jit
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_stride,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    if ADD:
        at = residual_ptr + row * width + columns
        # The sum is rounded to the stream's type before it is normed, as the stored stream is.
        x = (x.to(tl.float32) + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(at, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normed = (wide * scale).to(x.dtype).to(tl.float32) * weight.to(tl.float32)
    tl.store(out_ptr + row * width + columns, normed.to(x.dtype), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, early: bool = False) -> torch.Tensor:
    """See :func:`octavo.ops.reference.rms_norm`; ``x`` [tokens, size], rows contiguous."""
    return _launch(x, None, weight, eps, early)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, early: bool = False
) -> torch.Tensor:
    """See :func:`octavo.ops.reference.add_rms_norm`; ``residual`` is contiguous and changed in place."""
    return _launch(x, residual, weight, eps, early)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, early: bool
) -> torch.Tensor:
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if rows:
        block = triton.next_power_of_2(width)
        launch(
            _norm_kernel,
            (rows,),
            x,
            x if residual is None else residual,
            weight,
            out,
            x.stride(0),
            width,
            eps,
            ADD=residual is not None,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 16),
            **early_options(early),
        )
    return out
