"""Every error that Octavo raises on purpose.

A message says what was wrong and what would be right. ``OctavoError`` is the root, so that an application
can catch what the engine refuses without catching bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OctavoError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(OctavoError):
    """A configuration file or override is wrong. ``path`` is dotted, as in ``cache.block_size``."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class PluginError(OctavoError):
    """A plugin that was asked for is missing, broken, or in conflict with another."""


class CheckpointError(OctavoError):
    """A weight file or its config.json is missing, damaged, or contradicts the model. Names file and tensor."""


class RequestError(OctavoError):
    """One request is wrong; others are untouched.

    ``status`` is the HTTP status that a surface should answer with, ``param`` the field at fault and
    ``code`` a short machine-readable reason, as in OpenAI's error object.
    """

    status = 400

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NotFoundError(RequestError):
    """The request names a model or adapter that is not served here."""

    status = 404


class OverloadedError(RequestError):
    """The queue is full. ``retry_after`` is in seconds."""

    status = 429

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, code="overloaded")
        self.retry_after = retry_after


class NotReadyError(OverloadedError):
    """No requests are taken now: the engine starts, or is about to stop."""

    status = 503


class EngineDeadError(OctavoError):
    """The engine process has ended; nothing can be served until it is started again."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest of ``choices``, or an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
