"""Listening: which surface on which address, the sockets, and one ASGI application an address."""

from __future__ import annotations

import re
import secrets
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from octavo.config.launch import LaunchConfig
from octavo.config.schema import Section
from octavo.errors import ConfigError
from octavo.plugins.host import PluginHost
from octavo.records import ApiRecord

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.contracts.api import ApiSurface

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
_PARAMETER: Final = re.compile(r"\{[^}]*\}")
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ANY_METHOD: Final = frozenset({"any method"})


@dataclass(frozen=True, slots=True)
class Served:
    """A surface that the configuration names, and where it listens: its options' ``host`` and ``port``."""

    record: ApiRecord
    options: Section

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; the defaults where the surface's options have none."""
        return getattr(self.options, "host", DEFAULT_HOST), getattr(self.options, "port", DEFAULT_PORT)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files for HTTPS: a PEM chain, and its private key where that is not in the same file."""

    certfile: str
    keyfile: str | None

    def check(self) -> None:
        """Raise :class:`ConfigError` for files that can't be used, before anything is loaded."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certfile, self.keyfile, password="")
        except (OSError, ssl.SSLError) as error:
            where = self.certfile if self.keyfile is None else f"{self.certfile} and {self.keyfile}"
            raise ConfigError(f"can't be used for HTTPS ({where}): {error}", "certfile") from error


def certificate_of(group: Sequence[Served]) -> Certificate | None:
    """What surfaces that share a server say of HTTPS, checked. Raises :class:`ConfigError` where they differ."""
    found = {
        (getattr(each.options, "certfile", None), getattr(each.options, "keyfile", None))
        for each in group
        if hasattr(each.options, "certfile")
    }
    if len(found) > 1:
        raise ConfigError("surfaces on one address must agree on certfile and keyfile.", "api")
    certfile, keyfile = next(iter(found), (None, None))
    if certfile is None:
        if keyfile is not None:
            raise ConfigError("needs certfile.", "keyfile")
        return None
    certificate = Certificate(certfile, keyfile)
    certificate.check()
    return certificate


def served(config: LaunchConfig, host: PluginHost) -> list[Served]:
    """The surfaces of ``config``, in order. Raises :class:`ConfigError` if there is none."""
    records = {item.record.name: item.record for item in host.api_surfaces()}
    found = [
        Served(item.use if isinstance(item.use, ApiRecord) else records[item.use], item.options)
        for item in config.api
    ]
    if not found:
        raise ConfigError(f"no API surface is named, so there is nothing to serve.{host.not_loaded()}", "api")
    return found


def by_address(surfaces: Sequence[Served]) -> dict[tuple[str, int], list[Served]]:
    """Surfaces that share a listener."""
    groups: dict[tuple[str, int], list[Served]] = {}
    for surface in surfaces:
        groups.setdefault(surface.address, []).append(surface)
    return groups


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket: from now on the port is ours. Raises :class:`ConfigError` if it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"can't listen on {host!r}: {error.strerror}.", "api") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host} port {port}: {error.strerror}. Is another server running there? "
            f"Choose another port, such as --port {port + 1}.",
            "api",
        ) from error
    return listener


def build_app(surfaces: Sequence[tuple[str, ApiSurface]]) -> FastAPI:
    """One application with the routes of all ``surfaces`` (name and surface).

    Raises :class:`ConfigError` naming both when two of them answer the same path and method.
    """
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    taken: list[tuple[str, str, frozenset[str]]] = []
    for name, surface in surfaces:
        router = surface.router()
        routes = [(name, path, methods) for path, methods in routes_of(router, surface.prefix)]
        for mine in routes:
            for other in taken:
                _check_apart(mine, other)
        taken += routes
        app.include_router(router, prefix=surface.prefix)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _broken)
    return app


def routes_of(router: APIRouter, prefix: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Path patterns and methods of all routes, those of included routers too."""
    from fastapi import routing

    # Newer versions keep included routers nested; older ones flatten them.
    unfold: Any = getattr(routing, "iter_route_contexts", iter)
    for route in unfold(router.routes):
        methods = getattr(route, "methods", None)
        yield prefix + (getattr(route, "path", None) or ""), frozenset(methods) if methods else _ANY_METHOD


def _check_apart(mine: tuple[str, str, frozenset[str]], other: tuple[str, str, frozenset[str]]) -> None:
    shared = mine[2] & other[2] or (mine[2] | other[2] if _ANY_METHOD in (mine[2], other[2]) else frozenset())
    if not shared or not (_covers(mine[1], other[1]) or _covers(other[1], mine[1])):
        return
    raise ConfigError(
        f"surfaces {other[0]!r} and {mine[0]!r} both answer {'/'.join(sorted(shared))} {mine[1]}"
        f"{'' if mine[1] == other[1] else f' ({other[1]})'}; give one of them another port.",
        "api",
    )


def _covers(pattern: str, path: str) -> bool:
    """Whether a request for ``path`` could be answered by ``pattern``."""
    from starlette.routing import compile_path

    return compile_path(pattern)[0].match(_PARAMETER.sub("x", path)) is not None


async def _no_such_route(request: Request, error: Any) -> Response:
    message = {
        404: f"There is no {request.url.path[:200]} here.",
        405: f"{request.url.path[:200]} does not take {request.method[:20]}.",
    }.get(error.status_code, str(error.detail))
    return _error(request, error.status_code, message, "invalid_request_error", dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    return _error(request, 500, "Internal error.", "server_error", {})


def _error(request: Request, status: int, message: str, kind: str, headers: dict[str, str]) -> Response:
    from starlette.responses import JSONResponse

    given = request.headers.get("x-request-id", "")
    request_id = given if _SANE_ID.fullmatch(given) else "req-" + secrets.token_hex(12)
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, {**headers, "x-request-id": request_id})
