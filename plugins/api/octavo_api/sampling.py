"""From request fields to :class:`octavo.params.SamplingParams`, within the operator's limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from octavo.errors import RequestError
from octavo.params import SamplingParams
from octavo_api.options import OpenAIOptions
from octavo_api.schemas_chat import ChatBody
from octavo_api.schemas_completions import CompletionBody
from octavo_api.schemas_structured import wanted_form

_FROM_CHECKPOINT: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def chat_params(body: ChatBody, defaults: Mapping[str, Any], options: OpenAIOptions) -> SamplingParams:
    """Raises :class:`RequestError` naming the field at fault."""
    values = _common(body, defaults, options)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise RequestError(
            "max_completion_tokens and max_tokens contradict each other; give one.", param="max_completion_tokens"
        )
    values["max_tokens"] = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if body.logprobs:
        values["logprobs"] = _within("top_logprobs", body.top_logprobs or 0, options.max_logprobs)
    return SamplingParams(**values)


def within_room(params: SamplingParams, default: int | None, room: int) -> SamplingParams:
    """A chat request that sets no length gets the operator's ``default``, as far as the context has ``room``."""
    if params.max_tokens is not None or default is None:
        return params
    return msgspec.structs.replace(params, max_tokens=max(1, params.min_tokens, min(default, room)))


def completion_params(body: CompletionBody, defaults: Mapping[str, Any], options: OpenAIOptions) -> SamplingParams:
    """Raises :class:`RequestError` naming the field at fault."""
    values = _common(body, defaults, options)
    if body.logprobs is not None:
        values["logprobs"] = _within("logprobs", body.logprobs, options.max_logprobs)
        if body.echo:
            values["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    return SamplingParams(**values)


def _common(body: ChatBody | CompletionBody, defaults: Mapping[str, Any], options: OpenAIOptions) -> dict[str, Any]:
    values = {name: defaults[name] for name in _FROM_CHECKPOINT if defaults.get(name) is not None}
    values.update(body.sampling())
    values["structured_outputs"] = wanted_form(body)
    _check_count("n", values.get("n", 1), options.max_n)
    if body.prompt_logprobs is not None:
        _within("prompt_logprobs", body.prompt_logprobs, options.max_logprobs)
        if body.stream:
            raise RequestError("prompt_logprobs can't be streamed; set stream to false.", param="prompt_logprobs")
    return values


def _check_count(name: str, value: int, most: int) -> None:
    if value > most:
        raise RequestError(f"{name} may be at most {most} on this server, not {value}.", param=name)


def _within(name: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise RequestError(f"{name} must be between 0 and {most} on this server, not {value}.", param=name)
    return value
