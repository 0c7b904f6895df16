"""Plugin `triton-ops`: norm, gate, rotation, small products, masks, sampling. Imports no torch or triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from octavo.config.schema import NoOptions
from octavo.early import can_launch_early
from octavo.hookspecs import hookimpl
from octavo.records import Context, OpRecord

OCTAVO_API = (1, 0)


def _supports(ctx: Context) -> str | None:
    if ctx.device.type != "cuda" or ctx.device.capability is None:
        return f"it runs on NVIDIA GPUs, not on {ctx.device.name or ctx.device.type}"
    if ctx.device.capability < (8, 0):
        major, minor = ctx.device.capability
        return f"it needs compute capability 8.0 (Ampere) or newer; this GPU has {major}.{minor}"
    return None


def _rms_norm(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.norm import rms_norm

    return partial(rms_norm, early=can_launch_early(ctx.device.capability))


def _add_rms_norm(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.norm import add_rms_norm

    return partial(add_rms_norm, early=can_launch_early(ctx.device.capability))


def _silu_mul(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.gate import silu_mul

    return partial(silu_mul, early=can_launch_early(ctx.device.capability))


def _rope(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.rotary import rope

    return partial(rope, early=can_launch_early(ctx.device.capability))


def _qk_norm_rope(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.rotary import qk_norm_rope

    return partial(qk_norm_rope, early=can_launch_early(ctx.device.capability))


def _linear(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    import torch

    from octavo_ops.linear import Linear

    device = torch.cuda.get_device_properties(torch.device(ctx.device.torch_name))
    return Linear(device.multi_processor_count, can_launch_early(ctx.device.capability))


def _draw(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.draw import draw

    return draw


def _mask_logits(ctx: Context, options: NoOptions) -> Callable[..., Any]:
    from octavo_ops.masks import mask_logits

    return mask_logits


@hookimpl
def octavo_ops() -> Iterable[OpRecord]:
    """Contribute one record an operation."""
    for op, build in (
        ("rms_norm", _rms_norm),
        ("add_rms_norm", _add_rms_norm),
        ("silu_mul", _silu_mul),
        ("rope", _rope),
        ("qk_norm_rope", _qk_norm_rope),
        ("linear", _linear),
        ("draw", _draw),
        ("mask_logits", _mask_logits),
    ):
        yield OpRecord(
            name=f"triton-{op.replace('_', '-')}",
            summary=f"{op} in one Triton launch (NVIDIA GPUs from Ampere on).",
            op=op,
            rank=100,
            compiles_ahead=True,
            supports=_supports,
            build=build,
        )
