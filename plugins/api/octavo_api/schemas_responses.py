"""The body of ``/v1/responses``, and its items as chat messages."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainValidator, StringConstraints

from octavo.errors import RequestError
from octavo_api.schemas import Body, CacheSalt, Int, Label, Stop
from octavo_api.schemas_chat import TemplateKwargs
from octavo_api.schemas_tokens import NamedBody

MAX_ITEMS: Final = 4096
_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_ROLES: Final = ("system", "developer", "user", "assistant")


def _input(value: object) -> list[dict[str, Any]]:
    """Items; a string is one message of the user."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ValueError("must be a string or a list of items, and not empty")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"may hold at most {MAX_ITEMS} items")
    return value


Input = Annotated[list[dict[str, Any]], PlainValidator(_input, json_schema_input_type=str | list[dict[str, Any]])]
Metadata = Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Label], Field(max_length=16)]


class ResponseStreamOptions(Body):
    """What a stream tells beside the text."""

    include_obfuscation: Literal[False] | None = Field(None, description="There is none here.")


class ResponseBody(NamedBody):
    """A request for a response."""

    input: Input = Field(description="A text, or items: messages, calls of functions and their outputs.")
    instructions: str | None = Field(None, description="A system message for this response alone.")
    previous_response_id: Label | None = Field(None, description="Go on behind this response, if it is kept.")
    store: bool | None = Field(None, description="Keep the response, to be asked for or continued; default true.")
    background: bool | None = Field(None, description="Answer at once, and work on; ask for the response later.")
    stream: bool | None = Field(None, description="Answer with events.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Nothing can be set here.")
    metadata: Metadata | None = Field(None, description="Kept with the response and returned.")
    max_output_tokens: Int | None = Field(None, description="Longest answer, in tokens.")
    temperature: float | None = Field(None, description="0 takes the likeliest token; higher is more random.")
    top_p: float | None = Field(None, description="Draw from the likeliest tokens that hold this much probability.")
    top_logprobs: Int | None = Field(None, description="Likeliest tokens to report at each place.")
    text: dict[str, Any] | None = Field(None, description="`format`: text, json_object or json_schema.")
    reasoning: dict[str, Any] | None = Field(None, description="`effort`: how much to think, where the model can.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions that may be called.")
    tool_choice: str | dict[str, Any] | None = Field(None, description="none, auto, required, or a function.")
    parallel_tool_calls: bool | None = Field(None, description="May several functions be called at once?")
    include: list[str] | None = Field(None, description="`message.output_text.logprobs`, or nothing.")
    truncation: Literal["disabled"] | None = Field(None, description="What is too long is refused.")
    safety_identifier: Label | None = Field(None, description="Informational; changes nothing here.")
    prompt_cache_key: Label | None = Field(None, description="A routing hint; the one prefix cache always looks.")

    top_k: Int | None = Field(None, description="As in chat completions.")
    min_p: float | None = Field(None, description="As in chat completions.")
    repetition_penalty: float | None = Field(None, description="As in chat completions.")
    presence_penalty: float | None = Field(None, description="As in chat completions.")
    frequency_penalty: float | None = Field(None, description="As in chat completions.")
    seed: Int | None = Field(None, description="As in chat completions.")
    stop: Stop | None = Field(None, description="As in chat completions.")
    ignore_eos: bool | None = Field(None, description="As in chat completions.")
    min_tokens: Int | None = Field(None, description="As in chat completions.")
    priority: Int | None = Field(None, description="As in chat completions.")
    cache_salt: CacheSalt | None = Field(None, description="As in chat completions.")
    chat_template_kwargs: TemplateKwargs | None = Field(None, description="As in chat completions.")


def to_messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as chat messages. Raises :class:`RequestError` naming the item."""
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_message(item, where))
        elif kind == "function_call":
            _call(item, where, messages)
        elif kind == "function_call_output":
            _need(item, ("call_id", "output"), where)
            text = _text(item["output"], f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": text})
        elif kind != "reasoning":  # earlier thoughts are no part of what a template shows
            raise RequestError(
                f"{where}.type is {str(kind)[:60]!r}; this server takes message, function_call, "
                "function_call_output and reasoning.",
                param=f"{where}.type",
            )
    return messages


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    if item.get("role") not in _ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.", param=f"{where}.role")
    return {"role": item["role"], "content": _text(item.get("content"), f"{where}.content")}


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of parts.", param=where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise RequestError(
                f"{where}[{index}] must be a part with text (this server takes text only), such as "
                '{"type": "input_text", "text": "…"}.',
                param=f"{where}[{index}]",
            )
    return "\n".join(texts)


def _call(item: dict[str, Any], where: str, messages: list[dict[str, Any]]) -> None:
    """Calls that come one after the other belong to one message of the assistant."""
    _need(item, ("call_id", "name", "arguments"), where)
    call = {
        "id": item["call_id"],
        "type": "function",
        "function": {"name": item["name"], "arguments": item["arguments"]},
    }
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        last = {"role": "assistant", "content": None}
        messages.append(last)
    last.setdefault("tool_calls", []).append(call)


def _need(item: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if not isinstance(item.get(name), str) and not (name == "output" and isinstance(item.get(name), list)):
            raise RequestError(f"{where}.{name} must be a string.", param=f"{where}.{name}")
