"""A smaller model of the same vocabulary says what comes next (arXiv 2211.17192).

It has weights, quantisation and number type of its own, and its keys and values lie in the target's blocks, so that
what the prefix cache keeps of the one it keeps of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from octavo import hookimpl
from octavo.config.schema import Section
from octavo.contracts.proposer import DeviceProposer, DraftKit
from octavo.records import Context, ProposerRecord

OCTAVO_API = (1, 0)


class DraftModelOptions(Section):
    """Options of `draft-model`."""

    model: str = Field(description="The draft: a checkpoint folder, a .gguf file, or `bundled:NAME`.")
    tokens: int = Field(default=7, ge=1, le=16, description="Longest draft; what pays may make it shorter.")
    loader: str = Field(default="auto", description="How its weights come in.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Its type of weights and activations."
    )
    quantization: str = Field(default="auto", description="Its quantisation scheme.")


def _build(_: Context, options: DraftModelOptions, kit: DraftKit) -> DeviceProposer:
    from octavo_speculative.draft_loop import DraftModel

    body = kit.body(options.model, loader=options.loader, dtype=options.dtype, quantization=options.quantization)
    return DraftModel(body, kit.context.model, options.tokens)


@hookimpl
def octavo_proposers() -> Iterable[ProposerRecord]:
    """A second model."""
    yield ProposerRecord(
        name="draft-model",
        summary="A smaller model with the same vocabulary guesses on the device.",
        options=DraftModelOptions,
        build=_build,
        on_device=True,
        automatic=False,
    )
