"""The OpenAPI document of this surface's routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from octavo import __version__
from octavo_api.schemas import Body

_REFERENCE: Final = "#/components/schemas/{model}"


def described(body: type[Body]) -> dict[str, Any]:
    """What a route says of its request body, which FastAPI does not parse."""
    schema = {"$ref": _REFERENCE.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(router: APIRouter, bodies: Sequence[type[Body]]) -> dict[str, Any]:
    """The whole document; ``bodies`` are the request objects that the routes refer to."""
    schemas: dict[str, Any] = {}
    for body in bodies:
        schema = body.model_json_schema(ref_template=_REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[body.__name__] = schema
    found = get_openapi(title="Octavo", version=__version__, routes=router.routes)
    found.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return found
