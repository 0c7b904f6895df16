"""EAGLE heads: one decoder layer that goes on from the target's own hidden states.

EAGLE-1 (arXiv 2401.15077) starts from the last state and uses the target's embedding and output layer. EAGLE-3
(arXiv 2503.01840) starts from the states behind three layers and has an output layer of its own, often over a part
of the vocabulary. Which of them a checkpoint holds shows in its tensors. Drafts are chains.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from octavo import hookimpl
from octavo.config.schema import Section
from octavo.contracts.proposer import DeviceProposer, DraftKit
from octavo.records import Context, ProposerRecord

OCTAVO_API = (1, 0)


class EagleOptions(Section):
    """Options of `eagle`."""

    model: str = Field(description="Folder of the head: config.json and safetensors.")
    tokens: int = Field(default=5, ge=1, le=16, description="Longest draft; what pays may make it shorter.")


def _build(_: Context, options: EagleOptions, kit: DraftKit) -> DeviceProposer:
    from octavo_speculative.eagle_loop import build_eagle

    return build_eagle(kit, options.model, options.tokens)


@hookimpl
def octavo_proposers() -> Iterable[ProposerRecord]:
    """EAGLE-1 and EAGLE-3."""
    yield ProposerRecord(
        name="eagle",
        summary="An EAGLE-1 or EAGLE-3 head, made for the model, guesses from its hidden states.",
        options=EagleOptions,
        build=_build,
        on_device=True,
        automatic=False,
    )
