"""The plugin as such: light to import, clear in conflict, described by a schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from octavo.cli.listen import build_app, open_socket
from octavo.contracts.api import EngineClient
from octavo.errors import ConfigError
from octavo.testing.client import ScriptedClient
from octavo_api.openai import build, octavo_api_surfaces
from octavo_api.options import OpenAIOptions
from octavo_api.surface import OpenAISurface


def test_importing_the_entry_point_loads_no_server():
    code = (
        "import sys, octavo_api.openai\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'torch', 'transformers'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_record():
    (record,) = octavo_api_surfaces()
    assert (record.name, record.options) == ("openai", OpenAIOptions)
    client: EngineClient = ScriptedClient()
    assert isinstance(record.build(client, OpenAIOptions()), OpenAISurface)
    assert all(field.description for field in OpenAIOptions.model_fields.values())


def test_openapi_document(api):
    document = api.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert {"ChatBody", "CompletionBody", "Message"} <= references <= set(schemas)
    chat = schemas["ChatBody"]
    assert chat["required"] == ["messages"]
    assert {"temperature", "max_completion_tokens", "stream_options"} <= set(chat["properties"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = {parameter["name"] for parameter in operation.get("parameters", [])}
            assert named == set(re.findall(r"{(\w+)", path))
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(operations)


class Other:
    """A surface with one route."""

    def __init__(self, path, prefix="", method="POST"):
        self.path, self.prefix, self.method = path, prefix, method

    def router(self):
        from fastapi import APIRouter

        async def answer() -> str:
            return "mine"

        router = APIRouter()
        router.add_api_route(self.path, answer, methods=[self.method])
        outer = APIRouter()
        outer.include_router(router)
        return outer


@pytest.mark.parametrize(
    "other",
    [
        Other("/v1/completions"),
        Other("/completions", prefix="/v1"),
        Other("/v1/models/{name}", method="GET"),
        Other("/v1/models/special", method="GET"),
        Other("/{anything:path}", method="GET"),
    ],
)
def test_overlapping_surfaces_are_refused(other):
    with pytest.raises(ConfigError, match="'openai' and 'other' both answer"):
        build_app([("openai", build(ScriptedClient(), OpenAIOptions())), ("other", other)])


def test_surfaces_may_share_a_server(make_api):
    mine = build(ScriptedClient(), OpenAIOptions())
    api = make_api()
    api.app = build_app(
        [("openai", mine), ("other", Other("/v1/completions", method="GET")), ("third", Other("/x", "/y"))]
    )
    assert api.get("/v1/completions").json() == "mine"
    assert api.call("POST", "/y/x").json() == "mine"
    assert api.complete().status_code == 200


def test_taken_port():
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*already in use.*--port {port + 1}"):
            open_socket("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"can't listen on 'no\.such\.host"):
        open_socket("no.such.host.invalid", 8000)


def test_doubled_names_are_refused():
    for names in (["a", "a"], [""], ["x" * 257]):
        with pytest.raises(ConfigError, match="served_names"):
            build(ScriptedClient(), OpenAIOptions(served_names=names))
