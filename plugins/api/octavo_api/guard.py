"""What surrounds every endpoint: request id, key, body, limits, hang-ups, errors, CORS, counting."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from octavo_api.auth import check_key, credentials, load_admin_keys, load_keys
from octavo_api.disconnect import ClientGone, unless_gone
from octavo_api.errors import Failure, failure
from octavo_api.limits import Gate, check_content_type, read_body
from octavo_api.metrics import Metrics
from octavo_api.options import OpenAIOptions
from octavo_api.sse import EventStream

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PRIVATE_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_BROWSER_HEADERS: Final = "authorization, content-type, x-api-key, x-request-id"
_GONE: Final = 499  # nobody receives it; it shows in the figures


@dataclass(frozen=True, slots=True)
class Call:
    """One request, its body read. ``received`` is monotonic; ``deadline`` the event loop's time or ``None``.

    ``headers`` are lower-cased and hold no credentials.
    """

    request_id: str
    received: float
    deadline: float | None
    headers: Mapping[str, str]
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes = b""


Handler = Callable[[Call], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Request, Call], Awaitable[Response]]
Style = Callable[[Failure], bytes]


class Guard:
    """Makes endpoints out of handlers. ``style`` renders an error's body; by default as OpenAI does."""

    def __init__(self, options: OpenAIOptions, metrics: Metrics) -> None:
        self._options = options
        self._metrics = metrics
        self._keys = load_keys(options)
        self._admin_keys = load_admin_keys(options)
        self._gate = Gate(options.max_concurrent)

    @property
    def has_key(self) -> bool:
        """Whether clients need a key."""
        return bool(self._keys)

    @property
    def has_admin_key(self) -> bool:
        """Whether there are routes for the operator."""
        return bool(self._admin_keys)

    def open(self, route: str, handler: Handler) -> Endpoint:
        """An endpoint that anyone may ask, without a key."""
        return self._endpoint(route, _plain(handler), keys=())

    def keyed(self, route: str, handler: Handler) -> Endpoint:
        """An endpoint without a body."""
        return self._endpoint(route, _plain(handler), keys=self._keys)

    def admin(self, route: str, handler: Handler, *, body: bool = False) -> Endpoint:
        """An endpoint for the operator's key alone, with or without a JSON body."""
        answer = self._cancellable(handler) if body else _plain(handler)
        return self._endpoint(route, answer, keys=self._admin_keys, body=body, admin=True)

    def posted(self, route: str, handler: Handler, style: Style = Failure.body) -> Endpoint:
        """An endpoint with a JSON body: timed, given up when its client goes."""
        return self._endpoint(route, self._cancellable(handler), keys=self._keys, body=True, style=style)

    def generation(self, route: str, handler: Handler, style: Style = Failure.body) -> Endpoint:
        """Likewise, with a long answer: counted among the requests that are answered at once."""
        inner = self._cancellable(handler)

        async def answer(request: Request, call: Call) -> Response:
            self._gate.enter()
            response: Response | None = None
            try:
                response = await inner(request, call)
                return response
            finally:
                if isinstance(response, EventStream):
                    response.closed = self._gate.leave
                else:
                    self._gate.leave()

        return self._endpoint(route, answer, keys=self._keys, body=True, style=style)

    @staticmethod
    def _cancellable(handler: Handler) -> Answer:
        async def answer(request: Request, call: Call) -> Response:
            return await unless_gone(request.receive, _in_time(handler(call), call.deadline))

        return answer

    def _endpoint(
        self,
        route: str,
        answer: Answer,
        *,
        keys: Sequence[bytes],
        body: bool = False,
        admin: bool = False,
        style: Style = Failure.body,
    ) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            request_id, began = _request_id(request), monotonic()
            try:
                check_key(credentials(request.headers), keys)
                response = await answer(request, await self._call(request, request_id, body))
            except ClientGone:
                response = Response(status_code=_GONE)
            except Exception as error:
                response = failure(error, request_id).response(style)
            response.headers["x-request-id"] = request_id
            if not admin:
                self._allow_origin(request, response)
            self._metrics.responded(route, response.status_code, monotonic() - began)
            return response

        return endpoint

    async def _call(self, request: Request, request_id: str, body: bool) -> Call:
        received, limit = monotonic(), self._options.request_timeout
        data = b""
        if body:
            check_content_type(request.headers.get("content-type"))
            data = await read_body(
                request.receive,
                request.headers.get("content-length"),
                self._options.max_body_bytes,
                self._options.body_timeout,
                asks_first=request.headers.get("expect", "").lower() == "100-continue",
            )
        return Call(
            request_id,
            received,
            None if limit is None else asyncio.get_running_loop().time() + limit,
            {name: value for name, value in request.headers.items() if name not in _PRIVATE_HEADERS},
            {name: str(value) for name, value in request.path_params.items()},
            dict(request.query_params),
            data,
        )

    def _allow_origin(self, request: Request, response: Response) -> None:
        origin, allowed = request.headers.get("origin"), self._options.allowed_origins
        if origin is not None and (origin in allowed or "*" in allowed):
            response.headers["access-control-allow-origin"] = origin
            response.headers["access-control-expose-headers"] = "x-request-id"
            response.headers["vary"] = "Origin"

    async def preflight(self, request: Request) -> Response:
        """Endpoint for a browser's question whether a page of another origin may call."""
        response = Response(status_code=204)
        self._allow_origin(request, response)
        if "access-control-allow-origin" in response.headers:
            response.headers["access-control-allow-methods"] = "GET, POST"
            response.headers["access-control-allow-headers"] = (
                "authorization, content-type, x-api-key, x-request-id"
            )
            response.headers["access-control-max-age"] = "600"
        response.headers["x-request-id"] = _request_id(request)
        return response


def _plain(handler: Handler) -> Answer:
    async def answer(request: Request, call: Call) -> Response:
        return await handler(call)

    return answer


async def _in_time(work: Awaitable[Response], deadline: float | None) -> Response:
    async with asyncio.timeout_at(deadline):
        return await work


def _request_id(request: Request) -> str:
    """The client's own where it is harmless, else one of ours. A label for logs only."""
    given = request.headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else "req-" + secrets.token_hex(12)
