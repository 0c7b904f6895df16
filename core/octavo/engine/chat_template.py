"""Chat templates: messages to the text a model was trained on, by Jinja in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import CheckpointError, RequestError

MAX_OUTPUT: Final = 16 * 1024 * 1024
"""Longest text, in characters, that a template may produce."""

_RESERVED: Final = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
# Stands for the end of the message to continue. The space shows whether the template trims messages.
_MARK: Final = "<OCTAVO-CONTINUES-HERE> "


def render_chat(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    options: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """Render ``messages`` (``role``, ``content`` and whatever else the template reads).

    ``content`` may be a list of ``{"type": "text", "text": …}`` parts; they are joined by newlines. ``options``
    are further variables of the template. ``continue_final_message`` ends the text inside the last message, so
    that the model goes on with it. Raises :class:`RequestError` for messages that the template refuses.
    """
    if template is None:
        raise RequestError(
            "This model has no chat template. Send a plain prompt to the completions endpoint, or give a template "
            "in the configuration (model.chat_template).",
            code="no_chat_template",
        )
    _check_switches(add_generation_prompt, continue_final_message, options or {})
    plain = [_message(message, index) for index, message in enumerate(messages)]
    if not plain:
        raise RequestError("messages may not be empty.", param="messages")
    final = _mark_final(plain) if continue_final_message else None
    text = _render(
        template,
        {
            **(special_tokens or {}),
            **(options or {}),
            "messages": plain,
            "tools": [dict(tool) for tool in tools] if tools else None,
            "add_generation_prompt": add_generation_prompt,
        },
    )
    return text if final is None else _cut_after(text, final)


def check_template(template: str, where: str) -> None:
    """Compile only. Raises :class:`CheckpointError` with ``where``, the line and what Jinja says."""
    try:
        _compile(template)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"{where}: chat template, line {error.lineno}: {error.message}") from error


def _check_switches(add_generation_prompt: bool, continue_final_message: bool, options: Mapping[str, Any]) -> None:
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "add_generation_prompt and continue_final_message can't both be true: the first opens a new message.",
            param="continue_final_message",
        )
    reserved = _RESERVED.intersection(options)
    if reserved:
        raise RequestError(
            f"Template options may not be named {', '.join(sorted(reserved))}.", param="chat_template_kwargs"
        )


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    plain = dict(message)
    if not isinstance(plain.get("role"), str):
        raise RequestError(f"messages[{index}].role must be a string.", param="messages")
    if isinstance(plain.get("content"), (list, tuple)):
        plain["content"] = "\n".join(_text_of(part, index) for part in plain["content"])
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_tool_call(call) for call in plain["tool_calls"]]
    return plain


def _text_of(part: Any, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) and kind in ("text", "input_text", "output_text") else None
    if not isinstance(text, str):
        raise RequestError(
            f"messages[{index}].content holds a part of type {kind!r}; this model takes text parts only: "
            '{"type": "text", "text": "…"}.',
            param="messages",
        )
    return text


def _tool_call(call: Any) -> Any:
    """Clients send arguments as JSON text; templates expect the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        parsed = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


def _mark_final(messages: list[dict[str, Any]]) -> str:
    content = messages[-1].get("content")
    if not isinstance(content, str):
        raise RequestError("continue_final_message needs a last message with text in content.", param="messages")
    messages[-1]["content"] = content + _MARK
    return content


def _cut_after(text: str, final: str) -> str:
    at = text.rfind(_MARK.strip())
    if at < 0 or final.strip() not in text:
        raise RequestError(
            "continue_final_message is not possible: the chat template leaves out or changes the last message.",
            param="continue_final_message",
        )
    trimmed = not text.startswith(_MARK, at)
    return text[:at].rstrip() if trimmed else text[:at]


def _render(template: str, variables: Mapping[str, Any]) -> str:
    try:
        pieces, size = [], 0
        for piece in _compile(template).generate(variables):
            size += len(piece)
            if size > MAX_OUTPUT:
                raise RequestError(f"The chat template's output is longer than {MAX_OUTPUT} characters.")
            pieces.append(piece)
        return "".join(pieces)
    except RequestError:
        raise
    except jinja2.TemplateError as error:
        raise RequestError(
            f"The chat template refuses these messages: {error.message or error}", param="messages"
        ) from error
    except Exception as error:  # whatever an expression of the template raises on these messages
        raise RequestError(
            f"The chat template can't render these messages: {type(error).__name__}: {error}", param="messages"
        ) from error


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the model's own text for training; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class _Environment(ImmutableSandboxedEnvironment):
    """Templates come with downloads, so one expression may not eat the memory either."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not all(isinstance(value, (int, float)) for value in (left, right)) or operator == "**":
            size = max(_size(left), 1) * max(_size(right), 1)
            if size > MAX_OUTPUT:
                raise jinja2.TemplateError(f"{operator!r} would make a value larger than {MAX_OUTPUT}")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return abs(int(value)) if isinstance(value, (int, float)) else len(value) if hasattr(value, "__len__") else 1


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.globals.pop("lipsum", None)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    return environment.from_string(template)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
