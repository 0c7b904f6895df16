"""Plugin `lora`: adapters in PEFT's format. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from octavo.hookspecs import hookimpl
from octavo.records import Context, LoraRecord
from octavo_lora.options import LoraOptions

if TYPE_CHECKING:
    from octavo.contracts.lora import LoraBackend

OCTAVO_API = (1, 0)


def _build_torch(ctx: Context, options: LoraOptions) -> LoraBackend:
    from octavo_lora.torch_backend import TorchLora

    return TorchLora(options.max_loaded, options.max_rank)


@hookimpl
def octavo_lora_backends() -> Iterable[LoraRecord]:
    """Plain torch: runs anywhere, and is what other backends are measured against."""
    yield LoraRecord(
        name="torch",
        summary="LoRA adapters in plain torch, one product for each adapter of a step: runs anywhere.",
        build=_build_torch,
        options=LoraOptions,
    )
