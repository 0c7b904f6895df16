"""The body of Anthropic's ``/v1/messages``, and its messages as chat messages."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from octavo.errors import RequestError
from octavo_api.schemas import MAX_NAME, Body, Int, Stop

_HINTS: Final = {"cache_control", "citations"}  # the prefix cache always looks; there are no citations
MAX_MESSAGES: Final = 4096


class AnthropicMessage(Body):
    """One message."""

    role: Literal["user", "assistant"] = Field(description="Who says it.")
    content: str | list[dict[str, Any]] = Field(description="A text, or blocks.")


class CountBody(Body):
    """A request whose tokens are counted."""

    model: Annotated[str, StringConstraints(max_length=MAX_NAME)] | None = Field(
        None, description="A served name; the base model when absent."
    )
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="The conversation so far. One that ends with the assistant is gone on with."
    )
    system: str | list[dict[str, Any]] | None = Field(None, description="The system prompt.")
    tools: list[dict[str, Any]] | None = Field(None, description="Tools that may be used.")
    tool_choice: dict[str, Any] | None = Field(None, description="auto, any, none, or one tool.")
    thinking: dict[str, Any] | None = Field(None, description="Whether to think, where the model can.")


class MessagesBody(CountBody):
    """A request for a message."""

    max_tokens: Int = Field(description="Longest answer, in tokens.")
    stop_sequences: Stop | None = Field(None, description="Texts that end the answer.")
    stream: bool | None = Field(None, description="Answer with events.")
    temperature: float | None = Field(None, description="0 takes the likeliest token; higher is more random.")
    top_p: float | None = Field(None, description="Draw from the likeliest tokens that hold this much probability.")
    top_k: Int | None = Field(None, description="Draw from this many of the likeliest tokens.")
    output_config: dict[str, Any] | None = Field(None, description="`format`: a JSON schema for the answer.")
    metadata: dict[str, Any] | None = Field(None, description="`user_id`: informational.")


def to_chat(body: CountBody) -> list[dict[str, Any]]:
    """System prompt and messages as chat messages. Raises :class:`RequestError` naming the block."""
    messages: list[dict[str, Any]] = []
    if body.system is not None:
        messages.append({"role": "system", "content": _text(body.system, "system")})
    for index, message in enumerate(body.messages):
        where = f"messages[{index}]"
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        elif message.role == "user":
            messages += _user(message.content, f"{where}.content")
        else:
            messages.append(_assistant(message.content, f"{where}.content"))
    return messages


def _user(blocks: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Results of tools come first, each a message; then the texts as one."""
    results, texts = [], []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if block.get("type") == "tool_result":
            _only(block, {"type", "tool_use_id", "content", "is_error"}, place)
            content = _text(block.get("content") or "", f"{place}.content")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content})
        else:
            texts.append(_block_text(block, place))
    return [*results, *([{"role": "user", "content": "\n".join(texts)}] if texts else [])]


def _assistant(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    texts, calls = [], []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        kind = block.get("type")
        if kind == "tool_use":
            _only(block, {"type", "id", "name", "input"}, place)
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # earlier thoughts are not shown to templates
            texts.append(_block_text(block, place))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) if texts or not calls else None}
    return {**message, "tool_calls": calls} if calls else message


def _text(content: str | list[dict[str, Any]], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{where}[{index}]") for index, block in enumerate(content))


def _block_text(block: dict[str, Any], where: str) -> str:
    if block.get("type") != "text" or not isinstance(block.get("text"), str):
        raise RequestError(
            f"{where} is of type {str(block.get('type'))[:60]!r}; this server takes text and tools' blocks.",
            param=where,
        )
    _only(block, {"type", "text"}, where)
    text: str = block["text"]
    return text


def _only(block: dict[str, Any], known: set[str], where: str) -> None:
    for name in block:
        if name not in known | _HINTS:
            raise RequestError(
                f"{where}.{name[:60]} is not a field that this server knows.", param=f"{where}.{name[:60]}"
            )
