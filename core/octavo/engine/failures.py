"""Errors as data: what goes wrong in the engine is raised again, same class and message, where it is awaited."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from octavo.errors import (
    CheckpointError,
    ConfigError,
    EngineDeadError,
    NotFoundError,
    NotReadyError,
    OctavoError,
    OverloadedError,
    PluginError,
    RequestError,
)

_CLASSES: Final[dict[str, type[OctavoError]]] = {
    kind.__name__: kind
    for kind in (
        OctavoError,
        ConfigError,
        PluginError,
        CheckpointError,
        RequestError,
        NotFoundError,
        OverloadedError,
        NotReadyError,
        EngineDeadError,
    )
}
_log = logging.getLogger("octavo.engine")
_ATTRIBUTES: Final = ("path", "param", "code", "status", "retry_after")


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error that can be sent. ``kind`` is a class of :mod:`octavo.errors`."""

    kind: str
    message: str
    attributes: dict[str, str | int | None]


def describe(error: BaseException) -> Failure:
    """The nearest of Octavo's own classes, and the text. A foreign error keeps its class name in the text."""
    kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _CLASSES), None)
    if kind is None or not isinstance(error, OctavoError):
        return Failure(EngineDeadError.__name__, f"{type(error).__name__}: {error}", {})
    found = {name: getattr(error, name) for name in _ATTRIBUTES if hasattr(error, name)}
    return Failure(kind, str(error), found)


def restore(failure: Failure) -> OctavoError:
    """The exception that ``describe`` was given; not raised yet."""
    kind = _CLASSES.get(failure.kind, OctavoError)
    # The constructors build a text out of parts; here the text is ready.
    error = kind.__new__(kind)
    Exception.__init__(error, failure.message)
    for name in _ATTRIBUTES:
        if name in failure.attributes:
            setattr(error, name, failure.attributes[name])
    return error


def log_unexpected(error: BaseException) -> None:
    """Log an engine's failure to start with its traceback, unless it is an error that explains itself."""
    if not isinstance(error, OctavoError):
        _log.error("the engine could not be built", exc_info=error)
