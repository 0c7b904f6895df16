"""Medusa heads (arXiv 2401.10774): each says, from the target's last state, the token at one place ahead.

All places are guessed at once and know nothing of each other; only the likeliest chain is proposed.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from octavo import hookimpl
from octavo.config.schema import Section
from octavo.contracts.proposer import DeviceProposer, DraftKit
from octavo.records import Context, ProposerRecord

OCTAVO_API = (1, 0)


class MedusaOptions(Section):
    """Options of `medusa`."""

    model: str = Field(description="Folder with the heads as safetensors.")
    tokens: int = Field(default=16, ge=1, le=16, description="Longest draft; there are as many as there are heads.")


def _build(_: Context, options: MedusaOptions, kit: DraftKit) -> DeviceProposer:
    from octavo_speculative.medusa_heads import build_medusa

    return build_medusa(kit, options.model, options.tokens)


@hookimpl
def octavo_proposers() -> Iterable[ProposerRecord]:
    """Medusa."""
    yield ProposerRecord(
        name="medusa",
        summary="Medusa heads, made for the model, guess all places at once.",
        options=MedusaOptions,
        build=_build,
        on_device=True,
        automatic=False,
    )
