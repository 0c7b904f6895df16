"""The surface over a scripted client: called directly, and on a live server for the official client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from octavo.cli.listen import build_app, open_socket
from octavo.testing.client import ScriptedClient
from octavo_api.openai import build
from octavo_api.options import OpenAIOptions


class Api:
    """Calls the routes without a network. ``client`` is the scripted engine behind them."""

    def __init__(self, client: ScriptedClient, options: dict[str, Any]) -> None:
        self.client = client
        self.app = build_app([("openai", build(client, OpenAIOptions(**options)))])

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, **arguments)

        return asyncio.run(once())

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.call("GET", path, **arguments)

    def chat(self, content: str = "Hello", **fields: Any) -> httpx.Response:
        body = {"model": self.client.model_name, "messages": [{"role": "user", "content": content}], **fields}
        return self.call("POST", "/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "Hello", **fields: Any) -> httpx.Response:
        body = {"model": self.client.model_name, "prompt": prompt, **fields}
        return self.call("POST", "/v1/completions", json=body)


@pytest.fixture
def make_api() -> Callable[..., Api]:
    """``make_api(client=…, option=…)``."""

    def make(client: ScriptedClient | None = None, **options: Any) -> Api:
        return Api(client or ScriptedClient(), options)

    return make


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """With all defaults."""
    return make_api()


class Live:
    """A real server on the loopback interface, in a thread."""

    def __init__(self, api: Api) -> None:
        self.client = api.client
        self._socket = open_socket("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(api.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture
def make_live(make_api: Callable[..., Api]) -> Iterator[Callable[..., Live]]:
    """``make_live(client=…, option=…)``; stopped at the end of the test."""
    servers: list[Live] = []

    def make(client: ScriptedClient | None = None, **options: Any) -> Live:
        servers.append(Live(make_api(client, **options)))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def live(make_live: Callable[..., Live]) -> Live:
    """With all defaults."""
    return make_live()
