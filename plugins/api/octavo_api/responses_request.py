"""From the body of ``/v1/responses`` to that of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.errors import RequestError
from octavo_api.schemas_responses import ResponseBody
from octavo_api.unsupported import Neutral, check_extras

UNSUPPORTED: Final[Neutral] = {
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
    "service_tier": ("auto", "default"),
    "context_management": (),
    "prompt_cache_retention": (),
    "moderation": (),
}
NAMES: Final[Mapping[str, str]] = {
    "messages": "input",
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
    "reasoning_effort": "reasoning",
}
"""Chat's fields by the names that they have here."""

_SAME: Final = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "ignore_eos",
    "min_tokens",
    "priority",
    "cache_salt",
    "chat_template_kwargs",
    "parallel_tool_calls",
    "user",
)
_LOGPROBS: Final = "message.output_text.logprobs"
_INCLUDABLE: Final = (_LOGPROBS, "reasoning.encrypted_content")


def chat_fields(
    body: ResponseBody, messages: Sequence[Mapping[str, Any]], *, ignore_unknown: bool
) -> dict[str, Any]:
    """The chat request that answers ``messages``. Raises :class:`RequestError`."""
    check_extras(body, UNSUPPORTED, "", ignore_unknown=ignore_unknown)
    if body.stream_options is not None:
        check_extras(body.stream_options, {}, "stream_options.", ignore_unknown=ignore_unknown)
    fields = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    fields["messages"] = [*system, *messages]
    fields["max_completion_tokens"] = body.max_output_tokens
    fields["response_format"] = _format(body.text or {})
    fields["reasoning_effort"] = _effort(body.reasoning or {})
    for name in body.include or ():
        if name not in _INCLUDABLE:
            raise RequestError(
                f"include may hold {', '.join(_INCLUDABLE)} here, not {name[:60]!r}.", param="include"
            )
    if _LOGPROBS in (body.include or ()) or body.top_logprobs is not None:
        fields["logprobs"], fields["top_logprobs"] = True, body.top_logprobs or 0
    if body.tools:
        fields["tools"] = [_tool(tool, index) for index, tool in enumerate(body.tools)]
    if body.tool_choice is not None:
        fields["tool_choice"] = _choice(body.tool_choice)
    return {name: value for name, value in fields.items() if value is not None}


def _format(text: Mapping[str, Any]) -> dict[str, Any] | None:
    _only(text, ("format", "verbosity"), "text")
    if text.get("verbosity") not in (None, "medium"):
        raise RequestError("text.verbosity is not supported by this server.", param="text.verbosity")
    wanted = text.get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or not isinstance(wanted.get("type"), str):
        raise RequestError("text.format must be an object with a type.", param="text.format")
    if wanted["type"] != "json_schema":
        return dict(wanted)
    return {"type": "json_schema", "json_schema": {name: wanted[name] for name in wanted if name != "type"}}


def _effort(reasoning: Mapping[str, Any]) -> Any:
    _only(reasoning, ("effort", "summary", "generate_summary"), "reasoning")
    for name in ("summary", "generate_summary"):
        if reasoning.get(name) not in (None, "auto"):
            raise RequestError(f"reasoning.{name} is not supported by this server.", param=f"reasoning.{name}")
    return reasoning.get("effort")


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    where = f"tools[{index}]"
    if tool.get("type") != "function":
        raise RequestError(
            f"{where}.type is {str(tool.get('type'))[:60]!r}; this server takes function only.",
            param=f"{where}.type",
        )
    return {"type": "function", "function": {name: tool[name] for name in tool if name != "type"}}


def _choice(choice: str | Mapping[str, Any]) -> Any:
    if isinstance(choice, str):
        return choice
    if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
        raise RequestError('tool_choice must be a word or {"type": "function", "name": …}.', param="tool_choice")
    return {"type": "function", "function": {"name": choice["name"]}}


def _only(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise RequestError(
                f"{where}.{name[:60]} is not a field that this server knows; {where} may have {', '.join(known)}.",
                param=f"{where}.{name[:60]}",
                code="unknown_parameter",
            )
