"""The body of ``/v1/chat/completions``."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainValidator, model_validator

from octavo_api.schemas import Body, GenerationBody, Int
from octavo_api.schemas_structured import StructuredBody
from octavo_api.schemas_tools import ToolFields

MAX_TEMPLATE_KWARGS: Final = 32
MAX_KWARG_TEXT: Final = 1024


def _text(value: object) -> str | None:
    """Content as one string; the texts of several parts are joined by line ends."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of text parts")
    return "\n".join(_part(index, part) for index, part in enumerate(value))


def _part(index: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise ValueError(f"part {index} must be an object with a type, such as {{'type': 'text', 'text': '…'}}")
    if kind != "text":
        raise ValueError(f"part {index} is of type {kind[:40]!r}; this server takes text only")
    if set(part) != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError(f"part {index} must have a type and a string 'text', and nothing else")
    return part["text"]


Content = Annotated[str | None, PlainValidator(_text, json_schema_input_type=str | list[dict[str, str]] | None)]


class CalledFunction(Body):
    """The function of an earlier tool call. ``arguments`` is JSON in a string; templates get the object."""

    name: str
    arguments: str


class ToolCall(Body):
    """A tool call that the assistant made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One message. ``developer`` is OpenAI's newer word for ``system`` and reaches the template as that."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = Field(None, description="What an assistant message was preceded by; also as below.")
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant message may have tool_calls")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError("only a tool message may have a tool_call_id")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content}
        for name in ("name", "tool_call_id"):
            if getattr(self, name) is not None:
                message[name] = getattr(self, name)
        reasoning = self.reasoning or self.reasoning_content
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return message


def _template_kwargs(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_TEMPLATE_KWARGS:
        raise ValueError(f"must be an object with at most {MAX_TEMPLATE_KWARGS} entries")
    for name, item in value.items():
        scalar = item is None or isinstance(item, (bool, int, str)) or (type(item) is float and isfinite(item))
        if not scalar or (isinstance(item, str) and len(item) > MAX_KWARG_TEXT):
            raise ValueError(
                f"{name[:60]!r} must be true, false, null, a number, or a string of at most "
                f"{MAX_KWARG_TEXT} characters"
            )
    return value


TemplateKwargs = Annotated[
    dict[str, Any],
    PlainValidator(_template_kwargs, json_schema_input_type=dict[str, bool | int | float | str | None]),
]


class ChatBody(ToolFields, StructuredBody, GenerationBody):
    """A chat completion request."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] = Field(
        description="The conversation so far."
    )
    max_completion_tokens: Int | None = Field(None, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Report each token's log-probability.")
    top_logprobs: Int | None = Field(None, description="Likeliest tokens to report at each place, beside it.")
    add_generation_prompt: bool | None = Field(
        None, description="End the prompt with the start of an answer; default: unless a message is continued."
    )
    continue_final_message: bool | None = Field(None, description="Go on with the last message's text.")
    include_reasoning: bool | None = Field(None, description="false: the answer comes without its reasoning.")
    chat_template_kwargs: TemplateKwargs | None = Field(None, description="Switches of the chat template.")
