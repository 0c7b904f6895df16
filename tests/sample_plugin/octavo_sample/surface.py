"""API surface `sample`: one route beside OpenAI's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from octavo.contracts.api import EngineClient


class SampleSurface:
    """Implements :class:`octavo.contracts.api.ApiSurface`."""

    prefix = "/sample"

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def router(self) -> APIRouter:
        """``GET /sample/ping``."""
        router = APIRouter()
        router.add_api_route("/ping", self._ping, methods=["GET"])
        return router

    async def _ping(self) -> dict[str, Any]:
        """Asked again for each request: a surface is built while the model still loads."""
        health = self._client.health()
        if not health.ready:
            return {"ready": False, "reason": health.reason}
        return {"ready": True, "model": self._client.model_name, "running": self._client.stats().running}
