"""Prompt look-up: what followed the last tokens when they stood there before will follow them again.

Costs no model and no memory to speak of, and pays where answers repeat their prompt: editing, quoting, filling in
forms, code.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, model_validator

from octavo import hookimpl
from octavo.config.schema import Section
from octavo.contracts.proposer import Proposer
from octavo.records import Context, ProposerRecord

OCTAVO_API = (1, 0)


class NgramOptions(Section):
    """Options of `ngram`."""

    tokens: int = Field(default=10, ge=1, le=64, description="Longest draft; acceptance may make it shorter.")
    shortest: int = Field(default=2, ge=1, le=16, description="Last tokens that must match, at least.")
    longest: int = Field(default=8, ge=1, le=64, description="Matches longer than this count as this long.")

    @model_validator(mode="after")
    def _in_order(self) -> NgramOptions:
        if self.longest < self.shortest:
            raise ValueError(f"longest is {self.longest}, less than shortest, {self.shortest}")
        return self


def _build(_: Context, options: NgramOptions) -> Proposer:
    from octavo_speculative.lookup import NgramProposer

    return NgramProposer(options.tokens, options.shortest, options.longest)


@hookimpl
def octavo_proposers() -> Iterable[ProposerRecord]:
    """Look-up in the request's own tokens."""
    yield ProposerRecord(
        name="ngram",
        summary="Repeats what followed the same tokens earlier in the request.",
        options=NgramOptions,
        build=_build,
    )
