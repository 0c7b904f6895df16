"""Anthropic's ``/v1/messages`` and ``/v1/messages/count_tokens``, over the chat route."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response

from octavo.errors import RequestError
from octavo_api.answer import json_response
from octavo_api.chat_chunks import StreamFailed, chat_chunks
from octavo_api.errors import Failure, HttpError, failure
from octavo_api.generate import Generation, check_ready
from octavo_api.guard import Call, Guard
from octavo_api.messages_events import Event, MessageBuilder
from octavo_api.parse import parse
from octavo_api.responses import encode_event
from octavo_api.routes import Route, posted
from octavo_api.schemas_messages import CountBody, MessagesBody, to_chat
from octavo_api.sse import EventStream
from octavo_api.tokens import Tokens
from octavo_api.unsupported import Neutral, check_extras

B = TypeVar("B", bound=CountBody)

_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_UNSUPPORTED: Final[Neutral] = {
    "service_tier": ("auto", "standard_only"),
    "container": (),
    "mcp_servers": ([],),
    "context_management": (),
    "output_format": (),
    "inference_geo": (),
}
_NAMES: Final = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def error_body(about: Failure) -> bytes:
    """An error as Anthropic's clients expect it."""
    kind = _KINDS.get(about.status, "api_error" if about.status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": about.message}})


@dataclass(frozen=True, slots=True)
class Messages:
    """The two handlers."""

    generation: Generation
    tokens: Tokens

    async def create(self, call: Call) -> Response:
        """``POST /v1/messages``."""
        options = self.generation.options
        body = self._accept(MessagesBody, call)
        model, _ = self.generation.names.resolve(body.model)
        chunks = await chat_chunks(self.generation, call, self._fields(body), _NAMES)
        builder = MessageBuilder(model, body.stop_sequences or ())
        if body.stream:
            return EventStream(
                _encoded(_events(builder, chunks), call.request_id),
                request_id=call.request_id,
                keep_alive=options.stream_keep_alive,
                deadline=call.deadline,
                last_words=_error_event,
            )
        try:
            async with aclosing(_events(builder, chunks)) as events:
                async for _ in events:
                    pass
        except StreamFailed as error:
            raise HttpError(500, str(error)) from None
        return json_response(builder.message)

    async def count_tokens(self, call: Call) -> Response:
        """``POST /v1/messages/count_tokens``."""
        body = self._accept(CountBody, call)
        fields: dict[str, Any] = {"model": body.model, "messages": to_chat(body), **_continued(body)}
        if body.tools:
            fields["tools"] = [_tool(tool, index) for index, tool in enumerate(body.tools)]
        answer = await self.tokens.tokenize(replace(call, body=msgspec.json.encode(fields)))
        return json_response({"input_tokens": msgspec.json.decode(answer.body)["count"]})

    def _accept(self, kind: type[B], call: Call) -> B:
        check_ready(self.generation.client)
        body = parse(kind, call.body)
        ignore = self.generation.options.unknown_fields == "ignore"
        check_extras(body, _UNSUPPORTED, "", ignore_unknown=ignore)
        for index, message in enumerate(body.messages):
            check_extras(message, {}, f"messages[{index}].", ignore_unknown=ignore)
        return body

    @staticmethod
    def _fields(body: MessagesBody) -> dict[str, Any]:
        """The chat request."""
        fields: dict[str, Any] = {
            "model": body.model,
            "messages": to_chat(body),
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences or None,
            **_continued(body),
        }
        fields |= {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
        if body.tools:
            fields["tools"] = [_tool(tool, index) for index, tool in enumerate(body.tools)]
        if body.tool_choice is not None:
            fields |= _choice(body.tool_choice)
        if body.output_config is not None:
            fields |= _form(body.output_config)
        if body.thinking is not None:
            fields |= _thinking(body.thinking)
        user = (body.metadata or {}).get("user_id")
        fields["user"] = user[:512] if isinstance(user, str) else None
        return {name: value for name, value in fields.items() if value is not None}


def message_routes(guard: Guard, generation: Generation, tokens: Tokens) -> list[Route]:
    """Both."""
    messages = Messages(generation, tokens)

    def guarded(path: str, handler: Any) -> Any:
        return guard.generation(path, handler, error_body)

    def counted(path: str, handler: Any) -> Any:
        return guard.posted(path, handler, error_body)

    counting = "/v1/messages/count_tokens"
    return [
        posted("/v1/messages", guarded, messages.create, MessagesBody, "A message, for Anthropic's clients"),
        posted(counting, counted, messages.count_tokens, CountBody, "How many tokens a conversation has"),
    ]


def _continued(body: CountBody) -> dict[str, Any]:
    """A conversation that ends with the assistant is gone on with."""
    if body.messages[-1].role == "user":
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    where = f"tools[{index}]"
    if tool.get("type", "custom") != "custom" or not isinstance(tool.get("name"), str):
        raise RequestError(f"{where} must be a tool of your own, with a name and an input_schema.", param=where)
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    kind = choice.get("type")
    fields: dict[str, Any] = {}
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    if kind == "tool":
        return {**fields, "tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    if kind not in _CHOICES:
        raise RequestError(
            f"tool_choice.type must be one of {', '.join(_CHOICES)}, tool, not {str(kind)[:60]!r}.",
            param="tool_choice",
        )
    return {**fields, "tool_choice": _CHOICES[kind]}


def _form(config: Mapping[str, Any]) -> dict[str, Any]:
    """``output_config``: its ``format`` is what chat calls a response format."""
    for name in config:
        if name != "format":
            raise RequestError(f"output_config.{name[:60]} is not supported by this server.", param="output_config")
    form = config.get("format")
    if form is None:
        return {}
    if not isinstance(form, dict) or form.get("type") != "json_schema" or "schema" not in form:
        raise RequestError(
            'output_config.format must be {"type": "json_schema", "schema": …}.', param="output_config.format"
        )
    schema = {"name": "output", "schema": form["schema"]}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _thinking(thinking: Mapping[str, Any]) -> dict[str, Any]:
    """``disabled`` asks for nothing; what else it may be is the chat template's switch."""
    kind = thinking.get("type")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise RequestError(
            f"thinking.type must be enabled, adaptive or disabled, not {str(kind)[:60]!r}.", param="thinking"
        )
    return {"chat_template_kwargs": {"enable_thinking": kind != "disabled"}}


async def _events(
    builder: MessageBuilder, chunks: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[Event, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            for event in builder.chunk(chunk):
                yield event
        for event in builder.end():
            yield event


async def _encoded(events: AsyncGenerator[Event, None], request_id: str) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for event in events:
                yield encode_event(event)
    except StreamFailed as error:
        yield encode_event({"type": "error", "error": {"type": "api_error", "message": str(error)}})
    except Exception as error:
        yield _error_event(error, request_id)


def _error_event(error: BaseException, request_id: str) -> bytes:
    return b"event: error\ndata: " + error_body(failure(error, request_id)) + b"\n\n"
