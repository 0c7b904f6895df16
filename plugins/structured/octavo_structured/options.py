"""What may be set for the `llguidance` backend."""

from __future__ import annotations

from pydantic import Field

from octavo.config.schema import Section


class GuidanceOptions(Section):
    """Options of the `llguidance` backend. The limits bound the time and memory that one request's grammar can
    take."""

    threads: int | None = Field(
        None, ge=1, le=256, description="Threads that make a step's masks; default: one a core, 16 at most."
    )
    max_grammar_size: int = Field(500_000, ge=1000, description="Symbols that a grammar may have.")
    max_lexer_states: int = Field(250_000, ge=1000, description="Lexer states of a request, of 1 to 2 KiB each.")
    compile_fuel: int = Field(
        1_000_000, ge=1000, description="Work for building the regular expressions, about 50,000 a millisecond."
    )
    step_fuel: int = Field(200_000, ge=1000, description="Work for one mask, about 14,000 a millisecond.")
