"""What a script may hand to ``LLM``, sorted: one or several prompts, conversations, parameters, adapters."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import RequestError
from octavo.params import SamplingParams

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
AdapterNames = str | Sequence[str | None] | None
Params = SamplingParams | Sequence[SamplingParams] | None


def prompts_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single text or list of ids is one prompt; anything else is a list of prompts. Raises RequestError."""
    if isinstance(prompts, str):
        return [prompts]
    items = _items(prompts, "prompts must be text, a list of token ids, or a list of such", "prompt")
    return [items] if items and _is_id(items[0]) else items


def conversations_of(messages: Messages | Sequence[Messages]) -> list[Messages]:
    """One conversation, or several. Raises RequestError for what is neither."""
    wanted = 'messages must be a list of {"role": …, "content": …}, or a list of such lists'
    items = _items(messages, wanted, "messages")
    if not items or isinstance(items[0], Mapping):
        items = [items]
    for conversation in items:
        for message in _items(conversation, wanted, "messages"):
            if not isinstance(message, Mapping):
                raise RequestError(f"{wanted}; there is {_kind(message)} in it.", param="messages")
    return items


def params_for(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    """One for each of ``count`` prompts."""
    if isinstance(params, SamplingParams):
        return [params] * count
    each = _items(params, "params must be SamplingParams, or a list of them", "params")
    return _as_many(each, count, "sampling parameters", "params")


def adapters_for(adapter: AdapterNames, count: int) -> list[str | None]:
    """One for each of ``count`` prompts."""
    if adapter is None or isinstance(adapter, str):
        return [adapter] * count
    return _as_many(
        _items(adapter, "adapter must be a name, or a list of names", "adapter"), count, "adapters", "adapter"
    )


def priorities_for(priority: int | Sequence[int], count: int) -> list[int]:
    """One for each of ``count`` prompts."""
    if isinstance(priority, int):
        return [priority] * count
    return _as_many(
        _items(priority, "priority must be an integer, or a list", "priority"), count, "priorities", "priority"
    )


def _as_many(each: list[Any], count: int, things: str, param: str) -> list[Any]:
    if len(each) != count:
        raise RequestError(f"there are {count} prompts and {len(each)} {things}.", param=param)
    return each


def _items(value: Any, wanted: str, param: str) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise RequestError(f"{wanted}, not {_kind(value)}.", param=param)
    return list(value)


def _is_id(value: object) -> bool:
    """Anything that counts as an integer, numpy's too."""
    if isinstance(value, bool) or hasattr(value, "__len__"):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _kind(value: object) -> str:
    return {"str": "text", "dict": "a dictionary", "NoneType": "None"}.get(
        type(value).__name__, type(value).__name__
    )
