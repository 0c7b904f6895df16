"""The body of ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator

from octavo_api.schemas import GenerationBody, Int
from octavo_api.schemas_structured import StructuredBody

Prompt = str | list[int]
_LARGEST_ID = 2**31 - 1


def prompts_of(value: object) -> list[Prompt]:
    """One prompt or several, each text or token ids. By hand: one pass and one error, however long the list."""
    if isinstance(value, str) or _are_ids(value):
        return [value]  # type: ignore[list-item]
    if isinstance(value, list) and value and all(isinstance(item, str) or _are_ids(item) for item in value):
        return value
    raise ValueError(
        "must be a string, a list of token ids, or a list of such; token ids are integers from 0 "
        "and no list may be empty"
    )


def _are_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(item) is int and 0 <= item <= _LARGEST_ID for item in value)
    )


class CompletionBody(StructuredBody, GenerationBody):
    """A completion request."""

    prompt: Annotated[
        list[Prompt],
        PlainValidator(prompts_of, json_schema_input_type=str | list[int] | list[str] | list[list[int]]),
    ] = Field(description="A text, token ids, or a list of such; each is answered.")
    logprobs: Int | None = Field(None, description="Report each token's log-probability, and this many likeliest.")
    echo: bool | None = Field(None, description="Put the prompt before the answer.")
    add_special_tokens: bool | None = Field(None, description="Default true: begin text prompts with BOS.")
