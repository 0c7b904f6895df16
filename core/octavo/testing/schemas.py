"""Random JSON schemas whose instances are finite, so that even a model of random weights can finish one."""

from __future__ import annotations

import random
from typing import Any, Final

_NAMES: Final = ("id", "name", "ok", "size", "tags", "größe", "a b", "n/a", "x")
_WORDS: Final = ("red", "grün", 'quo"te', "two\nlines", "", "\\", "😀", "null")
_PATTERNS: Final = ("^[a-c]{1,3}$", "^[A-Z]\\d{2}$", "^(yes|no)$")


def random_schema(seed: int, depth: int = 3) -> dict[str, Any]:
    """A schema of JSON Schema draft 2020-12: objects, arrays, tuples, enums, unions, references, bounded strings
    and numbers. The same seed gives the same schema. Never one that nothing satisfies."""
    source = random.Random(seed)
    schema = _object(source, depth)
    if source.random() < 0.3:
        schema["$defs"] = {"leaf": _leaf(source)}
        schema["properties"]["leaf"] = {"$ref": "#/$defs/leaf"}
        schema["required"] = [*schema["required"], "leaf"]
    return schema


def _any(source: random.Random, depth: int) -> dict[str, Any]:
    if depth <= 0 or source.random() < 0.45:
        return _leaf(source)
    kind = source.choice((_object, _array, _tuple, _union))
    return kind(source, depth - 1)


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(_NAMES, source.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(source, depth) for name in names},
        "required": [name for name in names if source.random() < 0.7],
        "additionalProperties": False,
    }


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    low = source.randint(0, 2)
    return {
        "type": "array",
        "items": _any(source, depth),
        "minItems": low,
        "maxItems": low + source.randint(0, 2),
    }


def _tuple(source: random.Random, depth: int) -> dict[str, Any]:
    items = [_any(source, depth) for _ in range(source.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _union(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(source, depth) for _ in range(source.randint(2, 3))]}


def _leaf(source: random.Random) -> dict[str, Any]:
    low = source.randint(-1000, 1000)
    return source.choice(
        (
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 5000)},
            {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
            {"type": "string", "maxLength": source.randint(0, 6)},
            {"type": "string", "pattern": source.choice(_PATTERNS)},
            {"type": "string", "format": source.choice(("date", "uuid", "ipv4"))},
            {"enum": source.sample((*_WORDS, 1, -2.5, True, None), source.randint(1, 4))},
            {"const": source.choice((*_WORDS, 7))},
        )
    )
