"""What a route is: its path, its endpoint, and what the OpenAPI document says of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from octavo_api.guard import Endpoint, Handler
from octavo_api.schemas import Body

REFERENCE: Final = "#/components/schemas/{model}"
ERROR_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
    },
}
_TEXTS: Final = {
    400: "The request is wrong; the message says what would be right.",
    401: "The key is missing or wrong.",
    404: "There is no such model, or no such object.",
    408: "The body did not arrive in time.",
    413: "The body is larger than this server takes.",
    415: "The body is not JSON.",
    429: "The server is busy; Retry-After says when to come again.",
    500: "Something broke; the log has details.",
    503: "The server starts or stops.",
    504: "The answer took longer than this server allows.",
}
_PARAMETER: Final = re.compile(r"{(\w+)")
_WITHOUT_BODY: Final = (401, 404, 500, 503)
_PUBLIC: Final = (500, 503)


@dataclass(frozen=True, kw_only=True)
class Route:
    """``answers`` are the content types of a 200; ``keyed`` whether a key may be asked for; ``hidden`` routes stand
    in no document. ``browsers``: pages of allowed origins may call it. ``refuses``: may answer 400 though there is
    no body."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    body: type[Body] | None = None
    answers: Sequence[str] = ("application/json",)
    keyed: bool = True
    hidden: bool = False
    browsers: bool = False
    refuses: bool = False

    def document(self) -> dict[str, Any]:
        """Request body and answers, which FastAPI does not know of."""
        codes = tuple(_TEXTS) if self.body is not None else _WITHOUT_BODY if self.keyed else _PUBLIC
        codes = (400, *codes) if self.refuses else codes
        about: dict[str, Any] = {"responses": {"200": {"description": "The answer.", "content": self._contents()}}}
        for code in codes:
            content = {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}}
            about["responses"][str(code)] = {"description": _TEXTS[code], "content": content}
        if self.body is not None:
            schema = {"$ref": REFERENCE.format(model=self.body.__name__)}
            about["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if names := _PARAMETER.findall(self.path):
            about["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        if self.keyed:
            about["security"] = [{"key": []}]
        return about

    def _contents(self) -> dict[str, Any]:
        schemas = {"application/json": {"type": "object"}, "text/event-stream": {}}
        return {kind: {"schema": schemas.get(kind, {"type": "string"})} for kind in self.answers}


def posted(
    path: str, guarded: Callable[[str, Handler], Endpoint], handler: Handler, body: type[Body], summary: str
) -> Route:
    """A route that takes a JSON body and may be called by pages; ``guarded`` is a method of the guard."""
    kinds = ("application/json", "text/event-stream") if "stream" in body.model_fields else ("application/json",)
    endpoint = guarded(path, handler)
    return Route(
        method="POST", path=path, endpoint=endpoint, summary=summary, body=body, answers=kinds, browsers=True
    )


def asked(
    path: str,
    guarded: Callable[[str, Handler], Endpoint],
    handler: Handler,
    summary: str,
    *,
    keyed: bool = True,
    browsers: bool = False,
) -> Route:
    """A route without a body."""
    endpoint = guarded(path, handler)
    return Route(method="GET", path=path, endpoint=endpoint, summary=summary, keyed=keyed, browsers=browsers)


def add(router: APIRouter, route: Route) -> None:
    """Make ``router`` serve ``route``."""
    router.add_api_route(
        route.path,
        route.endpoint,
        methods=[route.method],
        summary=route.summary,
        operation_id=f"{route.method.lower()} {route.path}",
        response_model=None,
        response_class=Response,
        include_in_schema=not route.hidden,
        openapi_extra=route.document(),
    )
