"""The surface: which route has which handler."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from octavo import __version__
from octavo.contracts.api import EngineClient
from octavo_api.admin import admin_routes
from octavo_api.answer import json_response
from octavo_api.calling import check_tool_parser
from octavo_api.embeddings import Embeddings
from octavo_api.generate import Generation, check_ready
from octavo_api.guard import Call, Guard
from octavo_api.messages import message_routes
from octavo_api.metrics import Metrics
from octavo_api.models import Names
from octavo_api.openapi import document
from octavo_api.options import OpenAIOptions
from octavo_api.responses import response_routes
from octavo_api.routes import Route, add, asked, posted
from octavo_api.schemas_chat import ChatBody
from octavo_api.schemas_completions import CompletionBody
from octavo_api.schemas_tokens import DetokenizeBody, EmbeddingBody, TokenizeBody
from octavo_api.scores import scoring_routes
from octavo_api.tokens import Tokens

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
        routes = [*self._generating(), *self._asking()]
        if self._guard.has_admin_key:
            routes += admin_routes(self._guard, self._client)
        for route in routes:
            add(router, route)
            if route.browsers and self._options.allowed_origins:
                preflight = self._guard.preflight
                add(router, replace(route, method="OPTIONS", endpoint=preflight, body=None, hidden=True))
        about = document(router, routes)

        async def answer(call: Call) -> Response:
            return json_response(about)

        endpoint = self._guard.keyed(_DOCUMENT, answer)
        add(router, Route(method="GET", path=_DOCUMENT, endpoint=endpoint, summary="This document"))
        return router

    def _generating(self) -> list[Route]:
        guard, options = self._guard, self._options
        generation = Generation(self._client, options, self._names, self._metrics)
        embeddings = Embeddings(self._client, options, self._names, self._metrics)
        tokens = Tokens(self._client, options, self._names)
        found = [
            posted(
                "/v1/chat/completions", guard.generation, generation.chat, ChatBody, "Go on with a conversation"
            ),
            posted("/v1/completions", guard.generation, generation.completion, CompletionBody, "Continue a text"),
            posted("/v1/embeddings", guard.generation, embeddings.embeddings, EmbeddingBody, "Texts as vectors"),
            *response_routes(guard, generation),
            *message_routes(guard, generation, tokens),
            posted("/tokenize", guard.posted, tokens.tokenize, TokenizeBody, "A text's tokens"),
            posted("/detokenize", guard.posted, tokens.detokenize, DetokenizeBody, "The text of tokens"),
        ]
        if options.scoring == "cosine":
            found += scoring_routes(guard, embeddings)
        return found

    def _asking(self) -> list[Route]:
        guard = self._guard
        found = [
            asked("/v1/models", guard.keyed, self._models, "List the served models", browsers=True),
            asked("/v1/models/{model_id:path}", guard.keyed, self._model, "One served model", browsers=True),
            asked("/version", guard.keyed, self._version, "Octavo's version"),
        ]
        if self._options.metrics:
            figures = asked("/metrics", guard.keyed, self._exposition, "Figures for Prometheus")
            found.append(replace(figures, answers=("text/plain", "application/openmetrics-text")))
        for path, handler, summary in (
            ("/health", self._health, "Whether the engine is alive"),
            ("/ready", self._ready, "Whether new requests are taken"),
        ):
            route = asked(path, guard.open, handler, summary, keyed=False)
            found += [route, replace(route, method="HEAD", hidden=True)]
        return found

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
