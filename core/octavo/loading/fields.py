"""Typed access to JSON objects of a checkpoint; every failure names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, nearest


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object; anything else is a :class:`CheckpointError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the top level must be a JSON object, not {type(value).__name__}.")
    return value


class Fields:
    """Keys of one JSON object. ``where`` is what messages begin with: the file, and the section in it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        """True when the key is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer of at least ``minimum``; without a default the key must be there."""
        value = self._get(key, default, "an integer")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"must be an integer, not {value!r}")
        if value < minimum:
            raise self.error(key, f"must be at least {minimum}, not {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number greater than 0; without a default the key must be there."""
        value = self._get(key, default, "a number")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise self.error(key, f"must be a number greater than 0, not {value!r}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {value!r}")
        return value

    def section(self, key: str) -> dict[str, Any] | None:
        """A nested object, or ``None`` where the key is missing or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"must be an object, not {value!r}")
        return value

    def error(self, key: str, what: str) -> CheckpointError:
        """The error for one key: ``what`` says what is wrong and what would be right."""
        return CheckpointError(f"{self.where}: {key} {what}.")

    def _get(self, key: str, default: Any, kind: str) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.where}: {key} is missing; it must be {kind}.{nearest(key, self.values)}")
        return default
