"""From a chat request and its model to how the answer is made and read: tools, reasoning, and the form of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from octavo.contracts.api import EngineClient
from octavo.errors import ConfigError, RequestError, nearest
from octavo.params import SamplingParams
from octavo.records import ToolParserRecord
from octavo.structured import StructuredOutputs
from octavo_api.options import OpenAIOptions
from octavo_api.reading import NamedCall, Reading, RequiredCalls
from octavo_api.reasoning import TAGS, Tags
from octavo_api.schemas_chat import ChatBody
from octavo_api.schemas_tools import NamedChoice, Tool

_TAIL: Final = 64  # tokens of a prompt that are looked at for an opened reasoning


def offered_tools(body: ChatBody, client: EngineClient) -> list[dict[str, Any]] | None:
    """The tools for the chat template. Raises :class:`RequestError` for a choice that can't be had."""
    tools, choice = body.tools or [], body.tool_choice
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError("tools holds two functions of one name.", param="tools")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice asks for a call, and there are no tools.", param="tool_choice")
        return None
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise RequestError(
            f"tool_choice names {choice.function.name[:100]!r}, which is not among the tools."
            f"{nearest(choice.function.name[:100], names)}",
            param="tool_choice",
        )
    if choice == "none":
        return None
    if choice in (None, "auto") and "tools" not in client.chat_template:
        raise RequestError(
            "this model's chat template has no place for tools, so it would not know of them; "
            "tool_choice 'required', or one that names a function, works all the same.",
            param="tools",
        )
    return [tool.for_template() for tool in tools]


async def read_as(
    body: ChatBody, params: SamplingParams, prompt: Sequence[int], client: EngineClient, options: OpenAIOptions
) -> tuple[SamplingParams, Reading]:
    """The parameters with all that must hold for the answer, and how to read it."""
    tags, inside = await _reasoning(prompt, client, options)
    reading = Reading(tags, inside, show_reasoning=body.include_reasoning is not False)
    special = tags is not None and tags.special
    if body.tools and body.tool_choice != "none":
        reading, form, wants_special = _tools(body, reading, client, options)
        special |= wants_special
        if form is not None:
            params = msgspec.structs.replace(params, structured_outputs=form)
    form = params.structured_outputs
    if form is not None and tags is not None and (inside or options.reasoning == tags.name):
        params = msgspec.structs.replace(params, structured_outputs=msgspec.structs.replace(form, after=tags.end))
    if special:
        params = msgspec.structs.replace(params, skip_special_tokens=False)
    return params, reading


async def _reasoning(
    prompt: Sequence[int], client: EngineClient, options: OpenAIOptions
) -> tuple[Tags | None, bool]:
    """The marks of the model's reasoning, and whether the prompt has opened one; none where it has closed it."""
    template, wanted = client.chat_template, options.reasoning
    if wanted == "auto":
        tags = next((tags for tags in TAGS if tags.end in template), None)
    else:
        tags = next((tags for tags in TAGS if tags.name == wanted), None)
    if tags is None:
        return None, False
    tail = await client.decode(list(prompt[-_TAIL:]))
    opened, closed = tail.rfind(tags.start), tail.rfind(tags.end)
    if closed > opened and not tail[closed + len(tags.end) :].strip():
        return None, False  # the template has answered for the model: no reasoning
    return tags, opened > closed and not tail[opened + len(tags.start) :].strip()


def _tools(
    body: ChatBody, reading: Reading, client: EngineClient, options: OpenAIOptions
) -> tuple[Reading, StructuredOutputs | None, bool]:
    """How calls are read, the form that forces them, and whether their marks may be special tokens."""
    tools, choice = body.tools or [], body.tool_choice
    parallel = body.parallel_tool_calls is not False
    record = tool_parser(client, options)
    id_length = record.id_length if record is not None else None
    if choice in (None, "auto"):
        if record is None:
            raise RequestError(
                "this server does not know how this model writes tool calls: its operator can set tool_parser to "
                f"one of {', '.join(client.tool_parsers) or 'none (no plugin brings any)'}.",
                param="tools",
            )
        _refuse_form(body, "a form would keep the model from calling tools")
        made = [tool.for_template() for tool in tools]
        build = record.build
        return _with(reading, lambda: build(made), parallel, id_length), None, record.special_tokens
    _refuse_form(body, "a forced call has a form of its own")
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        tool = next(tool for tool in tools if tool.function.name == name)
        form = StructuredOutputs(json=json.dumps(_parameters(tool), ensure_ascii=False))
        return _with(reading, lambda: NamedCall(name), parallel, id_length, named=True), form, False
    form = StructuredOutputs(json=json.dumps(calls_schema(tools, parallel), ensure_ascii=False))
    return _with(reading, RequiredCalls, parallel, id_length), form, False


def _with(reading: Reading, parser: Any, parallel: bool, id_length: int | None, named: bool = False) -> Reading:
    return Reading(reading.tags, reading.inside, reading.show_reasoning, parser, named, parallel, id_length)


def _refuse_form(body: ChatBody, why: str) -> None:
    for name in (
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
    ):
        value = getattr(body, name)
        if value is not None and not (name == "response_format" and value.type == "text"):
            raise RequestError(f"{name} can't go with tools: {why}. Set tool_choice to 'none'.", param=name)


def check_tool_parser(client: EngineClient, options: OpenAIOptions) -> None:
    """Raise :class:`ConfigError` for a parser that no plugin brings."""
    parsers, wanted = client.tool_parsers, options.tool_parser
    if wanted not in ("auto", "none", *parsers):
        raise ConfigError(
            f"no loaded plugin contributes a tool parser {wanted!r}.{nearest(wanted, parsers)} "
            f"There are {', '.join(parsers) or 'none'}.",
            "api.options.tool_parser",
        )


def tool_parser(client: EngineClient, options: OpenAIOptions) -> ToolParserRecord | None:
    """What the configuration names, or the one of highest rank that recognises the template."""
    parsers, wanted = client.tool_parsers, options.tool_parser
    if wanted == "none":
        return None
    if wanted != "auto":
        return parsers[wanted]
    template = client.chat_template
    fitting = [record for record in parsers.values() if record.automatic and record.detect(template)]
    return max(fitting, key=lambda record: record.rank, default=None)


def calls_schema(tools: Sequence[Tool], parallel: bool) -> dict[str, Any]:
    """A list of calls. Each tool's own schema stands whole among the definitions, its references turned there."""
    calls, definitions = [], {}
    for index, tool in enumerate(tools):
        place = f"tool{index}"
        definitions[place] = _turned(_parameters(tool), f"#/$defs/{place}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "parameters": {"$ref": f"#/$defs/{place}"}},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    most = {} if parallel else {"maxItems": 1}
    return {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}, "$defs": definitions}


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object"}


def _turned(schema: Any, place: str) -> Any:
    """``schema`` with references to its root made references to ``place``."""
    if isinstance(schema, list):
        return [_turned(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _turned(value, place)
        for key, value in schema.items()
    }
