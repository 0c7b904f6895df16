"""Plugin `cpu`: native kernels for CPUs, used by themselves once `octavo native build` has compiled them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import AttentionRecord, Context, NativeRecord, OpRecord
from octavo_cpu.library import LIBRARY

if TYPE_CHECKING:
    from octavo.contracts.attention import AttentionBackend

OCTAVO_API = (1, 0)
_OPS = ("rms_norm", "add_rms_norm", "silu_mul", "rope", "qk_norm_rope")
_WIDEST_HEAD = 512


def _supports(ctx: Context) -> str | None:
    if ctx.device.type != "cpu":
        return f"it runs on a CPU; the device is {ctx.device.type}"
    if ctx.dtype != "float32":
        return f"needs model.dtype float32; it is {ctx.dtype}"
    return LIBRARY.missing()


def _supports_attention(ctx: Context) -> str | None:
    if ctx.kv_dtype != "float32":
        return f"needs cache.dtype float32; it is {ctx.kv_dtype}"
    if ctx.model.head_dim % 8:
        return f"needs heads of a multiple of 8; the model's have {ctx.model.head_dim}"
    return _supports(ctx)


def _supports_heads(ctx: Context) -> str | None:
    if ctx.model.head_dim > _WIDEST_HEAD:
        return f"takes heads of up to {_WIDEST_HEAD}; the model's have {ctx.model.head_dim}"
    return _supports(ctx)


def _build_op(name: str, ctx: Context, options: NoOptions) -> Callable[..., Any]:
    import torch

    from octavo_cpu.ops import NativeOps

    function: Callable[..., Any] = getattr(NativeOps(torch.get_num_threads()), name)
    return function


def _build_linear(ctx: Context, options: NoOptions) -> Any:
    import torch

    from octavo_cpu.linear import NativeLinear

    return NativeLinear(torch.get_num_threads())


def _build_attention(ctx: Context, options: NoOptions) -> AttentionBackend:
    import torch

    from octavo_cpu.attention import NativeAttention

    return NativeAttention(ctx, torch.get_num_threads())


@hookimpl
def octavo_native_libraries() -> Iterable[NativeRecord]:
    """What ``octavo native build`` compiles."""
    yield NativeRecord(name=LIBRARY.name, summary=LIBRARY.summary, build=LIBRARY.build, missing=LIBRARY.missing)


@hookimpl
def octavo_attention_backends() -> Iterable[AttentionRecord]:
    """Paged attention without a gather."""
    yield AttentionRecord(
        name="native-cpu",
        summary="Paged attention in C++, straight off the cache (CPUs with AVX2).",
        rank=50,
        supports=_supports_attention,
        build=_build_attention,
    )


@hookimpl
def octavo_ops() -> Iterable[OpRecord]:
    """The small operations, and the linear layers that are not quantised."""
    for op in _OPS:
        yield OpRecord(
            name=f"native-{op.replace('_', '-')}",
            summary=f"{op} in one pass in C++ (CPUs with AVX2).",
            op=op,
            rank=50,
            supports=_supports_heads if "rope" in op else _supports,
            build=partial(_build_op, op),
        )
    yield OpRecord(
        name="native-linear",
        summary="Float32 linear layers in C++: the same bits whatever the batch (CPUs with AVX2).",
        op="linear_method",
        rank=50,
        supports=_supports,
        build=_build_linear,
    )
