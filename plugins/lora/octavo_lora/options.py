"""What may be set under ``lora.options``."""

from __future__ import annotations

from pydantic import Field

from octavo.config.schema import Section


class LoraOptions(Section):
    """Options of the LoRA backends. Device memory is set aside for ``max_loaded`` adapters of ``max_rank``."""

    max_loaded: int = Field(default=8, ge=1, le=4096, description="Adapters on the device at a time.")
    max_rank: int = Field(default=32, ge=1, le=512, description="Largest rank of an adapter.")
    extra_mib: int = Field(
        default=32,
        ge=0,
        le=2**16,
        description="Device memory an adapter may take for embedding and output head, in MiB.",
    )

    @property
    def extra_bytes(self) -> int:
        """The same in bytes."""
        return self.extra_mib * 2**20
