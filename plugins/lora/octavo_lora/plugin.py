"""Plugin `lora`: adapters in PEFT's format. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from octavo.early import can_launch_early
from octavo.hookspecs import hookimpl
from octavo.records import Context, LoraRecord
from octavo_lora.options import LoraOptions

if TYPE_CHECKING:
    from octavo.contracts.lora import LoraBackend

OCTAVO_API = (1, 0)


def _build_torch(ctx: Context, options: LoraOptions) -> LoraBackend:
    from octavo_lora.torch_backend import TorchLora

    return TorchLora(options.max_loaded, options.max_rank, options.extra_bytes)


def _build_triton(ctx: Context, options: LoraOptions) -> LoraBackend:
    from octavo_lora.triton_backend import TritonLora

    early = can_launch_early(ctx.device.capability)
    return TritonLora(options.max_loaded, options.max_rank, options.extra_bytes, early)


def _supports_triton(ctx: Context) -> str | None:
    if ctx.device.type != "cuda" or ctx.device.capability is None:
        return f"it runs on NVIDIA GPUs, not on {ctx.device.name or ctx.device.type}"
    if ctx.device.capability < (8, 0):
        major, minor = ctx.device.capability
        return f"it needs compute capability 8.0 (Ampere) or newer; this GPU has {major}.{minor}"
    return None


@hookimpl
def octavo_lora_backends() -> Iterable[LoraRecord]:
    """Plain torch, which runs anywhere and is what the other is measured against; and Triton."""
    yield LoraRecord(
        name="triton",
        summary="LoRA adapters in two Triton launches a layer, whatever adapters a step mixes (NVIDIA, Ampere on).",
        build=_build_triton,
        options=LoraOptions,
        rank=100,
        supports=_supports_triton,
        graph_safe=True,
    )
    yield LoraRecord(
        name="torch",
        summary="LoRA adapters in plain torch, one product for each adapter of a step: runs anywhere.",
        build=_build_torch,
        options=LoraOptions,
    )
