"""Keys, sizes, times, places, origins, request ids, and clients that hang up."""

from __future__ import annotations

import http.client
import json
import socket
import time

import pytest

from octavo.contracts.api import Health
from octavo.errors import ConfigError
from octavo.testing.client import ScriptedClient
from octavo_api.auth import load_keys
from octavo_api.openai import build
from octavo_api.options import OpenAIOptions

GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/score"),
    ("POST", "/score"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/rerank"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/resp_1"),
    ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]
ADMIN = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/reset_prefix_cache", "/drain", "/resume"]
EVERYTHING = {"api_key": "k1", "admin_key": "boss", "scoring": "cosine"}


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    error = body["error"]
    assert sorted(error) == (["message", "type"] if "type" in body else ["code", "message", "param", "type"])
    return error


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_route_but_two_needs_the_key(make_api, method, path):
    api = make_api(**EVERYTHING)
    wrong = [{"authorization": text} for text in ("Bearer k2", "k1", "Basic k1", "Bearer boss")]
    for headers in ({}, {"x-api-key": "k2"}, *wrong):
        error = error_of(api.call(method, path, headers=headers), 401)
        assert "k1" not in error["message"]
        assert error.get("code", "invalid_api_key") == "invalid_api_key"
    for headers in ({"authorization": "bearer k1"}, {"x-api-key": "k1"}):
        assert api.call(method, path, headers=headers).status_code != 401


@pytest.mark.parametrize("path", ADMIN)
def test_admin_routes_need_a_key_of_their_own(make_api, path):
    assert make_api(api_key="k1").call("POST", path, headers={"authorization": "Bearer k1"}).status_code == 404
    api = make_api(**EVERYTHING)
    for headers in ({}, {"authorization": "Bearer k1"}):
        error_of(api.call("POST", path, headers=headers), 401)
    assert api.call("POST", path, headers={"authorization": "Bearer boss"}).status_code != 401


def test_health_needs_no_key(make_api):
    api = make_api(api_key="k1")
    assert api.get("/health").status_code == api.get("/ready").status_code == 200
    assert api.call("HEAD", "/health").content == b""


def test_guarded_list_is_complete(api):
    """Whoever adds a route must say here whether it needs the key."""
    from octavo.cli.listen import routes_of

    surface = build(api.client, OpenAIOptions(**EVERYTHING))
    paths = {
        path.replace("{model_id:path}", "scripted").replace("{response_id}", "resp_1")
        for path, _ in routes_of(surface.router(), "")
    }
    assert paths == {path for _, path in GUARDED} | {*ADMIN, "/health", "/ready"}


def test_key_file(tmp_path, make_api):
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    api = make_api(api_key_file=str(path), api_key="three")
    for key in ("one", "two", "three"):
        assert api.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    path.write_text("\n")
    for bad in ({"api_key": "k", "admin_key": "k"}, {"admin_key": ""}):
        with pytest.raises(ConfigError):
            make_api(**bad)
    for bad in ({"api_key_file": str(path)}, {"api_key_file": str(tmp_path / "none")}, {"api_key": " "}):
        with pytest.raises(ConfigError):
            load_keys(OpenAIOptions(**bad))


def test_key_does_not_show_in_the_options():
    assert "hush" not in repr(OpenAIOptions(api_key="hush")) + OpenAIOptions(api_key="hush").model_dump_json()


def test_key_is_kept_from_adapter_selection(make_api):
    api = make_api(api_key="k1")
    body = {"messages": [{"role": "user", "content": "x"}]}
    headers = {"authorization": "Bearer k1", "X-Tenant": "T"}
    api.call("POST", "/v1/chat/completions", json=body, headers=headers)
    seen = api.client.calls[0].arrival.headers
    assert seen["x-tenant"] == "T"
    assert "authorization" not in seen


def test_body_limit_holds_with_and_without_a_length(make_live):
    live = make_live(max_body_bytes=2048)
    body = json.dumps({"prompt": "x" * 5000}).encode()

    def in_chunks():
        for start in range(0, len(body), 500):
            yield body[start : start + 500]

    for data in (body, in_chunks()):
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        assert (response.status, error["code"]) == (413, "request_too_large")
        assert "2048" in error["message"]
        connection.close()
    assert live.client.calls == []


def test_large_bodies_never_lose_their_answer(make_live):
    """The client is still sending when the limit is passed; a reset would take the answer with it."""
    live = make_live(max_body_bytes=2048)
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
        connection.request("POST", "/v1/completions", b"x" * (8 << 20), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 413
        connection.close()


def test_slow_body_gets_408(make_live):
    live = make_live(body_timeout=0.2)
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_content_type(api, kind):
    headers = {} if kind is None else {"content-type": kind}
    error = error_of(api.call("POST", "/v1/completions", content=b"{}", headers=headers), 415)
    assert "application/json" in error["message"]


def test_unknown_route_and_method(api):
    assert "/v2/nothing" in error_of(api.get("/v2/nothing"), 404)["message"]
    response = api.get("/v1/completions")
    assert "GET" in error_of(response, 405)["message"]
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("a\tb", False), ("ü", False)],
)
def test_request_id(api, given, kept):
    headers = {"x-request-id": given.encode("latin-1")}
    for response in (api.get("/health", headers=headers), api.call("POST", "/v1/completions", headers=headers)):
        assert (response.headers["x-request-id"] == given) is kept
    assert api.get("/health").headers["x-request-id"].startswith("req-")


def test_places(make_live):
    live = make_live(ScriptedClient(delay=0.2), max_concurrent=1)
    with live.openai() as client:
        hello = {"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
        stream = client.chat.completions.create(**hello, stream=True)
        import openai

        with pytest.raises(openai.RateLimitError, match="at once"):
            client.chat.completions.create(**hello)
        list(stream)
        assert client.chat.completions.create(**hello, max_tokens=1).choices


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_aborts(make_live, stream):
    live = make_live(ScriptedClient(delay=0.05, answer=lambda prompt, index: "x" * 3000), max_concurrent=1)
    body = json.dumps({"prompt": ["a", "b"], "stream": stream, "max_tokens": 3000})
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    if stream:
        assert connection.getresponse().read(20)
    else:
        until(lambda: len(live.client.calls) == 2)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    until(lambda: len(live.client.aborted) == 2)
    with live.openai() as client:  # its place is free again
        assert client.completions.create(model="scripted", prompt="x", max_tokens=1).choices


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_request_timeout(make_api):
    client = ScriptedClient(delay=0.1, answer=lambda prompt, index: "x" * 100)
    api = make_api(client, request_timeout=0.25)
    assert error_of(api.chat(), 504)["code"] == "timeout"
    events = api.chat(stream=True).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "timeout"
    assert events[-2] == "data: [DONE]"
    assert len(client.aborted) == 2


def test_silent_streams_get_comments(make_api):
    client = ScriptedClient(delay=0.3, answer=lambda prompt, index: "xy", tokens_per_delta=2)
    text = make_api(client, stream_keep_alive=0.1).chat(stream=True).text
    assert text.count(": keep-alive\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")
    assert '"content":"xy"' in text


def test_refusal_after_patience_comes_as_an_event(make_api):
    class Slow(ScriptedClient):
        async def generate(self, *args, **kwargs):
            import asyncio

            await asyncio.sleep(0.3)
            async for delta in super().generate(*args, **kwargs):
                yield delta

    response = make_api(Slow(), stream_keep_alive=0.1).complete([999], stream=True)
    assert response.status_code == 200
    assert '"param":"prompt"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")


def test_cors(make_api):
    api = make_api(allowed_origins=["https://a.example"])
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    answer = api.call("OPTIONS", "/v1/chat/completions", headers=preflight)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    body = {"messages": [{"role": "user", "content": "x"}]}
    for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
        answer = api.call("POST", "/v1/chat/completions", json=body, headers={"origin": origin})
        assert ("access-control-allow-origin" in answer.headers) is allowed
    assert make_api().call("OPTIONS", "/v1/chat/completions", headers=preflight).status_code == 405


def test_health_and_readiness(make_api):
    client = ScriptedClient()
    api = make_api(client)
    assert api.get("/health").json() == {"status": "ok", "heartbeat_age": 0.01}
    assert api.get("/ready").json() == {"status": "ready"}
    client.state = Health(alive=True, ready=False, heartbeat_age=0.5, reason="draining")
    assert api.get("/health").status_code == 200
    answer = api.get("/ready")
    assert (answer.status_code, answer.json()["reason"]) == (503, "draining")
    assert answer.headers["retry-after"] == "5"
    client.state = Health(alive=False, ready=False, heartbeat_age=99.0, reason="no heartbeat")
    assert api.get("/health").status_code == 503
    assert api.get("/version").json()["version"]


def test_warning_when_open_to_the_network(caplog):
    for options, warned in (
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "0.0.0.0", "api_key": "k"}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
    ):
        caplog.clear()
        build(ScriptedClient(), OpenAIOptions(**options))
        assert ("without an API key" in caplog.text) is warned, options
