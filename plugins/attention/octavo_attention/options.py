"""What may be set under ``attention.options`` when ``attention.use`` is ``triton``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octavo.config.schema import Section


class TritonOptions(Section):
    """Options of the Triton backend."""

    prefill: Literal["auto", "portable"] = Field(
        "auto",
        description="Prefill kernel: auto takes the one made for Hopper where it can run; portable runs anywhere.",
    )
