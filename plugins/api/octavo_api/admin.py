"""Routes that change the server, for the operator's own key: adapters, the prefix cache, readiness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints
from starlette.responses import Response

from octavo.contracts.api import EngineClient
from octavo_api.answer import json_response
from octavo_api.guard import Call, Guard, Handler
from octavo_api.parse import parse
from octavo_api.routes import Route
from octavo_api.schemas import MAX_NAME, Body
from octavo_api.unsupported import check_extras

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)]


class LoadAdapterBody(Body):
    """An adapter to be served; names as in vLLM."""

    lora_name: Name = Field(description="The name that requests give as their model.")
    lora_path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        description="Folder of the adapter, in PEFT's format, on the server's machine."
    )
    pinned: bool | None = Field(None, description="Keep it on the device.")


class UnloadAdapterBody(Body):
    """An adapter to be served no longer."""

    lora_name: Name = Field(description="Its name.")


@dataclass(frozen=True, slots=True)
class Admin:
    """The handlers. Operators' requests are read strictly, whatever clients' are."""

    client: EngineClient

    async def load(self, call: Call) -> Response:
        """``POST /v1/load_lora_adapter``: also replaces an adapter of that name."""
        body = parse(LoadAdapterBody, call.body)
        check_extras(body, {"load_inplace": (True, False), "lora_int_id": ()}, "", ignore_unknown=False)
        served = await self.client.load_adapter(body.lora_name, body.lora_path, pinned=bool(body.pinned))
        about = {"rank": served.rank, "bytes": served.nbytes, "digest": served.digest, "pinned": served.pinned}
        return json_response({"status": "loaded", "name": served.name, "path": served.path, **about})

    async def unload(self, call: Call) -> Response:
        """``POST /v1/unload_lora_adapter``: answers when the last request for it has ended."""
        body = parse(UnloadAdapterBody, call.body)
        check_extras(body, {"lora_int_id": ()}, "", ignore_unknown=False)
        await self.client.unload_adapter(body.lora_name)
        return json_response({"status": "unloaded", "name": body.lora_name})

    async def reset_prefix_cache(self, call: Call) -> Response:
        """``POST /reset_prefix_cache``."""
        await self.client.reset_prefix_cache()
        return json_response({"status": "reset"})

    async def drain(self, call: Call) -> Response:
        """``POST /drain``: new requests get 503, those under way go on."""
        self.client.drain()
        return json_response({"status": "draining", "running": self.client.stats().running})

    async def resume(self, call: Call) -> Response:
        """``POST /resume``: undo ``/drain``."""
        self.client.resume()
        return json_response({"status": "ready"})


def admin_routes(guard: Guard, client: EngineClient) -> list[Route]:
    """All of them; to be served only where there is an operator's key."""
    admin = Admin(client)
    with_body: list[tuple[str, Handler, type[Body], str]] = [
        ("/v1/load_lora_adapter", admin.load, LoadAdapterBody, "Serve an adapter"),
        ("/v1/unload_lora_adapter", admin.unload, UnloadAdapterBody, "Serve an adapter no longer"),
    ]
    without: list[tuple[str, Handler, str]] = [
        ("/reset_prefix_cache", admin.reset_prefix_cache, "Forget cached prompt beginnings"),
        ("/drain", admin.drain, "Take no new requests"),
        ("/resume", admin.resume, "Take requests again"),
    ]
    return [
        *(
            Route(
                method="POST",
                path=path,
                endpoint=guard.admin(path, handler, body=True),
                summary=summary,
                body=body,
            )
            for path, handler, body, summary in with_body
        ),
        *(
            Route(method="POST", path=path, endpoint=guard.admin(path, handler), summary=summary)
            for path, handler, summary in without
        ),
    ]
