"""Pydantic's findings as one :class:`ConfigError`: dotted path, plain words, nearest right key."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from octavo.errors import ConfigError, nearest

M = TypeVar("M", bound=BaseModel)
_KEY_ERRORS: Final = ("extra_forbidden", "missing")


def validate(model: type[M], data: Any, path: str = "", *, strict: bool = False) -> M:
    """``data`` as a ``model``. ``path`` is where it stands in the file.

    Raises :class:`ConfigError` for the first thing wrong; others are mentioned by path.
    """
    try:
        return model.model_validate(data, strict=strict or None)
    except ValidationError as error:
        raise _translate(model, error, path) from None


def _translate(model: type[BaseModel], error: ValidationError, path: str) -> ConfigError:
    found: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for item in error.errors(include_url=False):
        keys, holder = _locate(model, item["loc"])
        dotted = ".".join([path, *keys] if path else keys)
        messages = found.setdefault(dotted, [])
        message = _message(item, keys[-1] if keys else "", holder, model)
        if message not in messages:
            messages.append(message)
        if item["type"] not in _KEY_ERRORS:
            values[dotted] = f", not {_short(item['input'])}"
    first, *others = found
    # A union reports one finding for each of its members.
    text = f"{' or '.join(found[first])}{values.get(first, '')}."
    if others:
        text += f" (Also wrong: {', '.join(others[:5])}{', …' if len(others) > 5 else ''}.)"
    return ConfigError(text, first)


def _message(item: Any, key: str, holder: type[BaseModel] | None, root: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        known = list(holder.model_fields) if holder else []
        hint = nearest(key, known) or _elsewhere(key, root)
        return f"unknown key.{hint} Known here: {', '.join(known) or 'none'}"
    if item["type"] == "missing":
        return "must be given"
    return str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _elsewhere(key: str, root: type[BaseModel]) -> str:
    places = [path for path in _paths(root, "") if path.rpartition(".")[2] == key]
    return f" Did you mean {places[0]!r}?" if places else ""


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _strip(field.annotation)
        if _is_model(inner):
            yield from _paths(inner, f"{prefix}{name}.")


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The parts of ``loc`` that are keys (pydantic adds the names of union members), and the last key's model."""
    keys: list[str] = []
    holder: type[BaseModel] | None = None
    current: Any = model
    for part in loc:
        origin, arguments = get_origin(current), get_args(current)
        if _is_model(current):
            holder = current
            field = current.model_fields.get(str(part))
            current = _strip(field.annotation) if field else None
        elif origin is not None and not _is_union(origin) and arguments:
            holder, current = None, _strip(arguments[-1] if issubclass(origin, Mapping) else arguments[0])
        else:
            member = [item for item in arguments if _is_model(item) and item.__name__ == part]
            if not member:
                break
            current = member[0]
            continue
        keys.append(str(part))
    return keys, holder


def _strip(annotation: Any) -> Any:
    """Without ``Annotated`` and without ``| None``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_union(get_origin(annotation)):
        members = [item for item in get_args(annotation) if item is not type(None)]
        return _strip(members[0]) if len(members) == 1 else annotation
    return annotation


def _is_union(origin: Any) -> bool:
    return origin is Union or origin is types.UnionType


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
