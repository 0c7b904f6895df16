"""Forms and forced calls over HTTP, with real engines behind: one of random weights in another process's stead, and
the bundled model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from octavo import AsyncEngine
from octavo.cli.listen import build_app
from octavo.testing.schemas import random_schema
from octavo.testing.tiny import tiny_llama
from octavo_api.openai import build
from octavo_api.options import OpenAIOptions

pytest.importorskip("llguidance")
ASK = [{"role": "user", "content": "What is the weather in Ulm? Answer as JSON."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["C", "F"]}},
        },
    },
}


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/v1/chat/completions", json={"messages": ASK, "temperature": 1.5, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


@pytest.mark.parametrize("inline", [True, False])
def test_random_weights(tmp_path: Path, inline: bool) -> None:
    folder = tiny_llama(tmp_path / "model")

    async def scenario() -> None:
        model = {"path": str(folder), "threads": 1}
        async with AsyncEngine(model, inline=inline, cache={"blocks": 400}) as engine:
            app = build_app([("openai", build(engine, OpenAIOptions()))])
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http:
                schemas = [random_schema(seed) for seed in range(8)]
                forms = [
                    {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
                    for schema in schemas
                ]
                found = await asyncio.gather(
                    *(ask(http, response_format=form, seed=seed, max_tokens=200) for seed, form in enumerate(forms))
                )
                finished = [pair for pair in zip(schemas, found, strict=True) if pair[1]["finish_reason"] == "stop"]
                assert len(finished) > 3
                for schema, choice in finished:
                    jsonschema.validate(json.loads(choice["message"]["content"]), schema)
                for choice_of, most in (
                    ("required", 9),
                    ({"type": "function", "function": {"name": "weather"}}, 1),
                ):
                    choice = await ask(http, tools=[WEATHER], tool_choice=choice_of, seed=3, max_tokens=200)
                    calls = choice["message"]["tool_calls"]
                    assert 1 <= len(calls) <= most
                    arguments = json.loads(calls[0]["function"]["arguments"])
                    jsonschema.validate(arguments, WEATHER["function"]["parameters"])  # type: ignore[index]
                bad = await http.post(
                    "/v1/chat/completions", json={"messages": ASK, "structured_outputs": {"regex": "(a"}}
                )
                assert bad.status_code == 400
                assert "unclosed group" in bad.json()["error"]["message"]
                assert bad.json()["error"]["param"] == "structured_outputs.regex"

    asyncio.run(scenario())
