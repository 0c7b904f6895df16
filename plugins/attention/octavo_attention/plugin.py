"""The plugin: what the Triton attention backend needs, and how it is built. Imports neither torch nor triton."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from octavo.hookspecs import hookimpl
from octavo.records import AttentionRecord, Context
from octavo_attention.options import TritonOptions

if TYPE_CHECKING:
    from octavo_attention.backend import TritonAttention

OCTAVO_API = (1, 0)
HEAD_SIZES = (64, 80, 96, 128, 192, 256)
DTYPES = ("bfloat16", "float16", "float32")
EIGHT_BITS = "fp8_e4m3"
MAX_GROUP = 32


def supports(ctx: Context) -> str | None:
    """``None``, or the first thing in the context that these kernels cannot do."""
    group, rest = divmod(ctx.model.num_heads, ctx.model.num_kv_heads)
    if ctx.device.type != "cuda" or ctx.device.capability is None:
        return f"it runs on NVIDIA GPUs, not on {ctx.device.name or ctx.device.type}"
    if ctx.device.capability < (8, 0):
        major, minor = ctx.device.capability
        return f"it needs compute capability 8.0 (Ampere) or newer; this GPU has {major}.{minor}"
    if ctx.model.head_dim not in HEAD_SIZES:
        return f"it has no kernel for head size {ctx.model.head_dim}, only for {', '.join(map(str, HEAD_SIZES))}"
    if ctx.dtype not in DTYPES:
        return f"it computes in {', '.join(DTYPES)}, not in {ctx.dtype}"
    if ctx.kv_dtype not in (ctx.dtype, EIGHT_BITS):
        return (
            f"its KV cache has the model's type ({ctx.dtype}) or {EIGHT_BITS}, not {ctx.kv_dtype}; set cache.dtype"
        )
    if ctx.kv_dtype == EIGHT_BITS and ctx.device.capability < (8, 9):
        return f"it reads an {EIGHT_BITS} cache on GPUs from Ada and Hopper on; set cache.dtype to {ctx.dtype}"
    if rest or group > MAX_GROUP:
        ratio = f"{ctx.model.num_heads} query heads for {ctx.model.num_kv_heads} key heads"
        return f"it needs 1 to {MAX_GROUP} query heads for each key head, without a rest; this model has {ratio}"
    return None


def _build(ctx: Context, options: TritonOptions) -> TritonAttention:
    from octavo_attention.backend import build

    return build(ctx, options)


@hookimpl
def octavo_attention_backends() -> Iterable[AttentionRecord]:
    """Contribute the backend ``triton``."""
    yield AttentionRecord(
        name="triton",
        summary="Paged attention in Triton for NVIDIA GPUs from Ampere on, with a kernel of its own for Hopper.",
        build=_build,
        options=TritonOptions,
        rank=100,
        supports=supports,
        graph_safe=True,
        compiles_ahead=True,
    )
