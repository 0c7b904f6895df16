"""Errors as OpenAI clients expect them: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from starlette.responses import Response

from octavo.errors import EngineDeadError, OverloadedError, RequestError

log = logging.getLogger("octavo.api")


class HttpError(RequestError):
    """A refusal with a status of its own and, where HTTP asks for them, headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a client sees it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The nested error object as JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        detail = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": detail})

    def response(self, style: Callable[[Failure], bytes] = body) -> Response:
        """The whole HTTP answer; ``style`` renders its body."""
        return Response(style(self), self.status, dict(self.headers), "application/json")


def failure(error: BaseException, request_id: str) -> Failure:
    """Translate ``error``. What nobody foresaw is logged under ``request_id``; the client learns no details."""
    if isinstance(error, OverloadedError):
        return Failure(error.status, str(error), code=error.code, headers={"retry-after": str(error.retry_after)})
    if isinstance(error, HttpError):
        return Failure(error.status, str(error), error.param, error.code, error.headers)
    if isinstance(error, RequestError):
        return Failure(error.status, str(error), error.param, error.code)
    if isinstance(error, TimeoutError):
        return Failure(504, "The answer took longer than this server allows.", code="timeout")
    if isinstance(error, EngineDeadError):
        log.error("request %s: the engine has stopped: %s", request_id, error)
        return Failure(500, "The engine has stopped; the server must be started again.", code="engine_dead")
    log.error("request %s failed", request_id, exc_info=error)
    return Failure(500, f"Internal error. The server's log has details under {request_id}.", code="internal")
