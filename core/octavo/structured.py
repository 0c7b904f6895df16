"""What form an answer must have. Part of :class:`octavo.params.SamplingParams`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from octavo.errors import RequestError

MAX_CHOICES: Final = 4096
_FORMS: Final = ("json", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of these: ``json``, a JSON schema (text, a mapping, ``True`` for any value, or a pydantic model);
    ``json_object``, any JSON object; ``regex``, which the whole answer matches; ``choice``, texts of which it is
    one; ``grammar``, in EBNF as GBNF writes it (``root ::= …``) or in Lark's syntax (``start: …``).

    ``disable_any_whitespace`` leaves no white space between JSON's tokens; ``whitespace_pattern`` is a regular
    expression for it. ``after``: the form begins behind the first place where the answer has this text, such as the
    end of a reasoning; before it, anything goes.

    Raises :class:`RequestError` naming the field at fault.
    """

    json: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    after: str = ""

    def __post_init__(self) -> None:
        if self.json is not None:
            msgspec.structs.force_setattr(self, "json", _schema_text(self.json))
        if self.choice is not None:
            msgspec.structs.force_setattr(self, "choice", _choices(self.choice))
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise _wrong(name, f"must be text, and not empty, not {value!r}.")
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, f"must be true or false, not {getattr(self, name)!r}.")
        if not isinstance(self.after, str):
            raise _wrong("after", f"must be text, not {self.after!r}.")
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "none is given"
            raise RequestError(
                f"structured_outputs takes exactly one of {', '.join(_FORMS)}; {what}.", param="structured_outputs"
            )
        self._check_whitespace()

    def _check_whitespace(self) -> None:
        spaced = [name for name in ("disable_any_whitespace", "whitespace_pattern") if getattr(self, name)]
        if spaced and self.form not in ("json", "json_object"):
            raise _wrong(spaced[0], f"is about JSON; it says nothing of a {self.form}.")
        if len(spaced) == 2:
            raise _wrong("whitespace_pattern", "contradicts disable_any_whitespace; give one.")

    @property
    def form(self) -> str:
        """The field that is given."""
        return next(name for name in _FORMS if getattr(self, name) not in (None, False))

    def check_limits(self, max_bytes: int, max_depth: int) -> None:
        """Refuse what is larger, or nested deeper, than the operator allows, with :class:`RequestError`."""
        given = (self.json, self.regex, self.grammar, self.whitespace_pattern, self.after, *(self.choice or ()))
        try:
            size = sum(len(text.encode()) for text in given if text)
        except UnicodeEncodeError:
            raise _wrong(self.form, "is not valid Unicode: it holds half of a surrogate pair.") from None
        if size > max_bytes:
            raise _wrong(self.form, f"is {size} bytes long; this server takes {max_bytes} at most.")
        if self.json is not None and (depth := _depth(self.json)) > max_depth:
            raise _wrong("json", f"is nested {depth} levels deep; this server takes {max_depth} at most.")


def no_structured_outputs(reason: str) -> RequestError:
    """For a server that can't hold answers to a grammar."""
    return RequestError(f"this server has no structured outputs: {reason}.", param="structured_outputs")


def _schema_text(schema: Any) -> str:
    """The schema as JSON text, found sound as JSON."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    try:
        if isinstance(schema, (Mapping, bool)):
            return json.dumps(schema, ensure_ascii=False)
        if not isinstance(schema, str):
            raise TypeError(f"it is a {type(schema).__name__}")
        parsed = json.loads(schema)
        if not isinstance(parsed, (dict, bool)):
            raise TypeError(f"it is {schema[:60]!r}")
    except RecursionError:
        raise _wrong("json", "is nested too deep.") from None
    except (TypeError, ValueError) as error:
        raise _wrong("json", f"must be a JSON schema, an object or true: {error}.") from None
    return schema


def _choices(choice: Any) -> tuple[str, ...]:
    valid = isinstance(choice, (list, tuple)) and all(isinstance(text, str) and text for text in choice)
    if not valid or not 0 < len(choice) <= MAX_CHOICES:
        raise _wrong("choice", f"must be a list of 1 to {MAX_CHOICES} texts, none of them empty.")
    return tuple(choice)


def _depth(text: str) -> int:
    """Nesting of a JSON text that is known to be sound. Brackets inside strings don't count."""
    depth = deepest = 0
    inside = escaped = False
    for char in text:
        if inside:
            inside, escaped = escaped or char != '"', char == "\\" and not escaped
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _wrong(name: str, text: str) -> RequestError:
    return RequestError(f"structured_outputs.{name} {text}", param=f"structured_outputs.{name}")
