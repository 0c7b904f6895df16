"""The OpenAPI document of this surface's routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from octavo import __version__
from octavo_api.routes import ERROR_SCHEMA, REFERENCE, Route


def document(router: APIRouter, routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document, with the request objects that ``routes`` refer to."""
    schemas: dict[str, Any] = {"Error": ERROR_SCHEMA}
    for body in {route.body for route in routes if route.body is not None}:
        schema = body.model_json_schema(ref_template=REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[body.__name__] = schema
    found = get_openapi(title="Octavo", version=__version__, routes=router.routes)
    components = found.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found
