"""The surface: which route has which handler."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from octavo import __version__
from octavo.contracts.api import EngineClient
from octavo_api.answer import json_response
from octavo_api.calling import check_tool_parser
from octavo_api.generate import Generation, check_ready
from octavo_api.guard import Call, Endpoint, Guard
from octavo_api.metrics import Metrics
from octavo_api.models import Names
from octavo_api.openapi import described, document
from octavo_api.options import OpenAIOptions
from octavo_api.schemas_chat import ChatBody
from octavo_api.schemas_completions import CompletionBody

log = logging.getLogger("octavo.api")

_DOCUMENT: Final = "/openapi.json"
_NOT_READY_RETRY: Final = {"retry-after": "5"}


class OpenAISurface:
    """OpenAI's routes, and those that operators need. Implements :class:`octavo.contracts.api.ApiSurface`."""

    prefix = ""

    def __init__(self, client: EngineClient, options: OpenAIOptions) -> None:
        check_tool_parser(client, options)
        self._client = client
        self._options = options
        self._names = Names(client, options)
        self._metrics = Metrics(client)
        self._guard = Guard(options, self._metrics)
        if not self._guard.has_key and not is_loopback(options.host):
            log.warning(
                "Listening on %s without an API key: whoever can reach this address can use the model. "
                "Set api_key or api_key_file in the options of 'openai'.",
                options.host,
            )

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(redirect_slashes=False)
        guard = self._guard
        generation = Generation(self._client, self._options, self._names, self._metrics)
        for path, handler, body, summary in (
            ("/v1/chat/completions", generation.chat, ChatBody, "Go on with a conversation"),
            ("/v1/completions", generation.completion, CompletionBody, "Go on with a text"),
        ):
            _add(router, path, ["POST"], guard.generation(path, handler), summary, described(body))
        for path, asked, summary in (
            ("/v1/models", self._models, "List the served models"),
            ("/v1/models/{model_id:path}", self._model, "One served model"),
            ("/version", self._version, "Octavo's version"),
            *([("/metrics", self._exposition, "Figures for Prometheus")] if self._options.metrics else []),
        ):
            _add(router, path, ["GET"], guard.keyed(path, asked), summary)
        for path, asked, summary in (
            ("/health", self._health, "Whether the engine is alive"),
            ("/ready", self._ready, "Whether new requests are taken"),
        ):
            _add(router, path, ["GET"], guard.open(path, asked), summary)
            _add(router, path, ["HEAD"], guard.open(path, asked), summary)
        if self._options.allowed_origins:
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model_id:path}"):
                _add(router, path, ["OPTIONS"], guard.preflight, "May a page of another origin call?")
        self._add_document(router)
        return router

    def _add_document(self, router: APIRouter) -> None:
        about = document(router, [ChatBody, CompletionBody])

        async def answer(call: Call) -> Response:
            return json_response(about)

        _add(router, _DOCUMENT, ["GET"], self._guard.keyed(_DOCUMENT, answer), "This document")

    async def _models(self, call: Call) -> Response:
        check_ready(self._client)
        return json_response({"object": "list", "data": self._names.listing()})

    async def _model(self, call: Call) -> Response:
        check_ready(self._client)
        return json_response(self._names.find(call.path["model_id"]))

    async def _version(self, call: Call) -> Response:
        return json_response({"version": __version__})

    async def _exposition(self, call: Call) -> Response:
        data, content_type = self._metrics.render(call.headers.get("accept", ""))
        return Response(data, headers={"content-type": content_type})

    async def _health(self, call: Call) -> Response:
        """Alive as long as the engine's loop beats; busy or draining is alive."""
        health = self._client.health()
        status = {"status": "ok" if health.alive else "dead", "heartbeat_age": round(health.heartbeat_age, 3)}
        return json_response(
            status if health.alive else {**status, "reason": health.reason}, 200 if health.alive else 503
        )

    async def _ready(self, call: Call) -> Response:
        """Ready when new requests are taken."""
        health = self._client.health()
        if health.alive and health.ready:
            return json_response({"status": "ready"})
        response = json_response({"status": "not ready", "reason": health.reason or "starting"}, 503)
        response.headers.update(_NOT_READY_RETRY)
        return response


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _add(
    router: APIRouter,
    path: str,
    methods: list[str],
    endpoint: Endpoint,
    summary: str,
    extra: dict[str, Any] | None = None,
) -> None:
    router.add_api_route(
        path,
        endpoint,
        methods=methods,
        summary=summary,
        operation_id=f"{methods[0].lower()} {path}",
        response_model=None,
        response_class=Response,
        include_in_schema=methods != ["OPTIONS"],
        openapi_extra=extra,
    )
