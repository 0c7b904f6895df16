"""From a constraint to the text that llguidance compiles."""

from __future__ import annotations

import json
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from octavo.errors import RequestError
from octavo.structured import StructuredOutputs


def grammar_source(constraint: StructuredOutputs) -> str:
    """Raises :class:`RequestError` for what can be seen to be wrong without compiling."""
    if constraint.form in ("json", "json_object"):
        return _json(constraint)
    if constraint.regex is not None:
        return str(llguidance.LLMatcher.grammar_from_regex(constraint.regex))
    if constraint.choice is not None:
        texts = " | ".join(_literal(text) for text in constraint.choice)
        return str(llguidance.LLMatcher.grammar_from_lark(f"start: {texts}"))
    assert constraint.grammar is not None
    try:
        lark = any_to_lark(constraint.grammar)
    except Exception as error:  # the converter raises plain exceptions for what it can't read
        raise RequestError(
            f"structured_outputs.grammar can't be used: {error}.", param="structured_outputs.grammar"
        ) from None
    return str(llguidance.LLMatcher.grammar_from_lark(lark))


def _json(constraint: StructuredOutputs) -> str:
    schema = {"type": "object"} if constraint.json is None else json.loads(constraint.json)
    if schema is True:
        schema = {}
    if schema is False:
        raise RequestError(
            "structured_outputs.json is false, which nothing satisfies.", param="structured_outputs.json"
        )
    overrides: dict[str, Any] = {"whitespace_flexible": not constraint.disable_any_whitespace}
    if constraint.whitespace_pattern is not None:
        overrides["whitespace_pattern"] = constraint.whitespace_pattern
    try:
        return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=overrides))
    except ValueError as error:
        raise RequestError(
            f"structured_outputs.json can't be used: {error}.", param="structured_outputs.json"
        ) from None


def _literal(text: str) -> str:
    """A text as Lark writes it: JSON's escapes are the same, and other characters stand for themselves."""
    return json.dumps(text, ensure_ascii=False)
