"""Suffix decoding (arXiv 2411.04975): what followed these tokens in this request, or in earlier answers.

Where prompt look-up repeats the latest place, this counts all of them: a draft follows the tokens that came most
often, for as long as that is likely enough, and longer matches make longer drafts. It pays for agents and for
other work whose answers resemble earlier ones. Whoever can measure the speed of answers may learn from it what
others were answered: where that matters, ``kept`` should be 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from octavo import hookimpl
from octavo.config.schema import Section
from octavo.contracts.proposer import Proposer
from octavo.records import Context, ProposerRecord

OCTAVO_API = (1, 0)


class SuffixOptions(Section):
    """Options of `suffix`."""

    tokens: int = Field(default=16, ge=1, le=64, description="Longest draft; acceptance may make it shorter.")
    depth: int = Field(default=24, ge=2, le=64, description="Last tokens that are compared, at most.")
    factor: float = Field(
        default=2.0, gt=0, le=16, description="Tokens drafted for each token that matched, at most."
    )
    least: float = Field(
        default=0.1, gt=0, le=1, description="A draft ends where it becomes less likely than this, by counts."
    )
    kept: int = Field(
        default=200_000, ge=0, description="Tokens of earlier answers remembered; 0: only the request's own."
    )


def _build(_: Context, options: SuffixOptions) -> Proposer:
    from octavo_speculative.suffix_drafts import SuffixProposer

    return SuffixProposer(options.tokens, options.depth, options.factor, options.least, options.kept)


@hookimpl
def octavo_proposers() -> Iterable[ProposerRecord]:
    """Look-up in the request and in earlier answers."""
    yield ProposerRecord(
        name="suffix",
        summary="Continues as the request and earlier answers did most often.",
        options=SuffixOptions,
        build=_build,
    )
