"""What form a request wants its answer to have: OpenAI's ``response_format``, and vLLM's fields."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from octavo.errors import RequestError
from octavo.structured import StructuredOutputs
from octavo_api.schemas import Body

Schema = dict[str, Any] | bool
Texts = Annotated[list[str], Field(fail_fast=True)]


class JsonSchemaFormat(Body):
    """``name`` and ``description`` are for people. The answer is held to the schema whether ``strict`` or not."""

    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    description: str | None = None
    schema_: Schema = Field(alias="schema", description="JSON schema of the answer.")
    strict: bool | None = None


class ResponseFormat(Body):
    """Text, any JSON object, or what a JSON schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredFields(Body):
    """Exactly one of json, json_object, regex, choice and grammar, as in vLLM."""

    json_: Schema | str | None = Field(None, alias="json", description="JSON schema.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: str | None = Field(None, description="The whole answer matches it.")
    choice: Texts | None = Field(None, description="The answer is one of these.")
    grammar: str | None = Field(None, description="EBNF (GBNF) or Lark grammar.")
    disable_any_whitespace: bool | None = Field(None, description="No white space between JSON's tokens.")
    whitespace_pattern: str | None = Field(None, description="Regular expression of JSON's white space.")

    def given(self) -> dict[str, Any]:
        """The fields that are not null, under their names in a request."""
        pairs = [("json" if name == "json_" else name, getattr(self, name)) for name in type(self).model_fields]
        return {name: value for name, value in pairs if value is not None}


class StructuredBody(Body):
    """The fields of a generation request that are about its form. One of them may be given."""

    response_format: ResponseFormat | None = Field(None, description="The form of the answer.")
    structured_outputs: StructuredFields | None = Field(None, description="The form of the answer, as in vLLM.")
    guided_json: Schema | str | None = Field(None, description="Older word for structured_outputs.json.")
    guided_regex: str | None = Field(None, description="Older word for structured_outputs.regex.")
    guided_choice: Texts | None = Field(None, description="Older word for structured_outputs.choice.")
    guided_grammar: str | None = Field(None, description="Older word for structured_outputs.grammar.")


_GUIDED: Final = ("json", "regex", "choice", "grammar")


def wanted_form(body: StructuredBody) -> StructuredOutputs | None:
    """Raises :class:`RequestError` for two forms at once, and for one that is wrong."""
    found: list[tuple[str, dict[str, Any]]] = []
    if body.response_format is not None and body.response_format.type != "text":
        found.append(("response_format", _of_format(body.response_format)))
    if body.structured_outputs is not None:
        found.append(("structured_outputs", body.structured_outputs.given()))
    for name in _GUIDED:
        value = getattr(body, f"guided_{name}")
        if value is not None:
            found.append((f"guided_{name}", {name: value}))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise RequestError(f"{names} each set the form of the answer; give one.", param=found[1][0])
    if not found:
        return None
    (param, fields) = found[0]
    try:
        return StructuredOutputs(**fields)
    except RequestError as error:
        if param == "structured_outputs":
            raise
        raise RequestError(f"{param}: {error}", param=param, code="invalid_value") from None


def _of_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.json_schema is None:
        raise RequestError(
            'response_format of type "json_schema" needs json_schema: {"name": …, "schema": {…}}.',
            param="response_format.json_schema",
        )
    return {"json": wanted.json_schema.schema_}
