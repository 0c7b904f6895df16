"""Plugin `llguidance`: JSON schemas, regular expressions, choices and grammars. Light to import."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from octavo.hookspecs import hookimpl
from octavo.records import Context, StructuredOutputRecord
from octavo_structured.options import GuidanceOptions

if TYPE_CHECKING:
    from octavo.contracts.structured import StructuredBackend, Vocabulary

OCTAVO_API = (1, 0)


def _supports(_: Context) -> str | None:
    if find_spec("llguidance") is None:
        return "it needs the package llguidance: pip install 'octavo[structured]'"
    return None


def _build(_: Context, options: GuidanceOptions, vocabulary: Vocabulary) -> StructuredBackend:
    from octavo_structured.backend import Guidance

    return Guidance(vocabulary, options)


@hookimpl
def octavo_structured_outputs() -> Iterable[StructuredOutputRecord]:
    """Contribute ``llguidance``."""
    yield StructuredOutputRecord(
        name="llguidance",
        summary="JSON schema, regular expression, choice, EBNF or Lark grammar, by llguidance.",
        options=GuidanceOptions,
        supports=_supports,
        build=_build,
    )
