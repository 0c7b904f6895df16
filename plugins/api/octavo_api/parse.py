"""A JSON body into a request object, and validation errors into one short message."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Final, TypeVar

from pydantic import ValidationError

from octavo.errors import RequestError
from octavo_api.schemas import Body

B = TypeVar("B", bound=Body)

_SHOWN_ERRORS: Final = 3
_SHOWN_INPUT: Final = 100


def parse(kind: type[B], body: bytes) -> B:
    """Raises :class:`RequestError` naming the first field at fault, or the place where the JSON ends being JSON."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> RequestError:
    details = error.errors(include_url=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        return RequestError(f"{details[0]['msg']}.", code="invalid_json")
    lines = []
    for detail in details[:_SHOWN_ERRORS]:
        path = _path(detail["loc"])
        text = detail["msg"].removeprefix("Value error, ")
        given = "" if detail["type"] in ("missing", "value_error") else f", not {_shown(detail['input'])}"
        lines.append(f"{path or 'the request'}: {text[0].lower()}{text[1:300]}{given}")
    if len(details) > _SHOWN_ERRORS:
        lines.append(f"and {len(details) - _SHOWN_ERRORS} more")
    return RequestError("; ".join(lines) + ".", param=_path(details[0]["loc"]) or None, code="invalid_value")


def _path(loc: Sequence[int | str]) -> str:
    """``messages[0].content``."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            path += ("." if path else "") + part[:_SHOWN_INPUT]
    return path[:_SHOWN_INPUT]


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = _repr.repr(value)
    return text if len(text) <= _SHOWN_INPUT else text[:_SHOWN_INPUT] + "…"


_repr: Final = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlist = _repr.maxdict = 4
_repr.maxlevel = 3
