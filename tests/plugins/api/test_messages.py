"""Anthropic's Messages API: objects, events, errors, counting."""

from __future__ import annotations

import json

import pytest

from octavo.errors import OverloadedError
from octavo.testing.client import ScriptedClient
from octavo_api.messages_events import MessageBuilder

ONE = {"model": "scripted", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def ask(api):
    return lambda **fields: api.call("POST", "/v1/messages", json={**ONE, **fields})


def prompt_of(api, index=-1):
    return bytes(api.client.calls[index].prompt[1:]).decode()


def refusal(response, status, kind):
    assert response.status_code == status, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    return body["error"]["message"]


def test_a_message(api, ask):
    message = ask(system="Be brief.", temperature=0.5, top_p=0.9, top_k=4, metadata={"user_id": "u"}).json()
    assert prompt_of(api) == "system: Be brief.\nuser: Hello\nassistant: "
    call = api.client.calls[0]
    assert (call.params.temperature, call.params.top_p, call.params.top_k) == (0.5, 0.9, 4)
    assert call.arrival.user == "u"
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "scripted")
    assert (
        message["content"] == [{"type": "text", "text": "Answer 0: user: Hello\nassistant: "}] or message["content"]
    )
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(call.prompt)
    assert usage["cache_read_input_tokens"] == 16 * (len(call.prompt) // 16)


def test_the_form_of_an_answer(api, ask):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert ask(output_config={"format": {"type": "json_schema", "schema": schema}}).status_code == 200
    assert api.client.calls[0].params.structured_outputs is not None


def test_ends(ask):
    assert ask(max_tokens=3).json()["stop_reason"] == "max_tokens"
    stopped = ask(stop_sequences=["0:"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "0:")
    assert stopped["content"][0]["text"] == "Answer "


def test_blocks_become_messages(api, ask):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "two"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "three"},
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]},
            ],
        },
        {"role": "assistant", "content": "four"},
    ]
    assert ask(messages=messages, system=[{"type": "text", "text": "S"}]).status_code == 200
    assert prompt_of(api) == "system: S\nuser: one\nassistant: two\ntool: 42\nuser: three\nassistant: four"


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_stream(ask):
    events = events_of(ask(stream=True))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["usage"]["cache_read_input_tokens"] > 0
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == ask().json()["content"][0]["text"]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] > 5


def test_count_tokens(api):
    body = {name: ONE[name] for name in ("model", "messages")}
    counted = api.call("POST", "/v1/messages/count_tokens", json=body).json()
    api.call("POST", "/v1/messages", json=ONE)
    assert counted == {"input_tokens": len(api.client.calls[0].prompt)}


def test_errors_look_like_anthropics(make_api):
    api = make_api(api_key="k", max_body_bytes=2000)
    assert "API key" in refusal(api.call("POST", "/v1/messages", json=ONE), 401, "authentication_error")
    key = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
    for fields, status, kind in (
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request_error"),
        ({"colour": 1}, 400, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
        ),
        ({"tool_choice": {"type": "some"}}, 400, "invalid_request_error"),
        ({"thinking": {"type": "deep"}}, 400, "invalid_request_error"),
        ({"output_config": {"effort": "low"}}, 400, "invalid_request_error"),
        ({"output_config": {"format": {"type": "text"}}}, 400, "invalid_request_error"),
        ({"model": "other"}, 404, "not_found_error"),
        ({"system": "x" * 3000}, 413, "request_too_large"),
    ):
        assert refusal(api.call("POST", "/v1/messages", json={**ONE, **fields}, headers=key), status, kind)
    full = make_api(ScriptedClient(failure=OverloadedError("full", retry_after=3)))
    answer = full.call("POST", "/v1/messages", json=ONE)
    assert refusal(answer, 429, "rate_limit_error") == "full"
    assert answer.headers["retry-after"] == "3"


def test_error_in_mid_stream(make_api):
    api = make_api(ScriptedClient(failure=RuntimeError("secret"), fail_after=2))
    events = events_of(api.call("POST", "/v1/messages", json={**ONE, "stream": True}))
    assert events[-1]["type"] == "error"
    assert "secret" not in events[-1]["error"]["message"]
    assert refusal(api.call("POST", "/v1/messages", json=ONE), 500, "api_error")


def chunk(finish=None, stop=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "stop_reason": stop}]}


def test_thoughts_and_tools():
    builder = MessageBuilder("m", [])
    events = [
        event
        for one in (
            chunk(role="assistant", content=""),
            chunk(reasoning="Hm"),
            chunk(content="Let me see."),
            chunk(tool_calls=[{"index": 0, "id": "c0", "function": {"name": "f", "arguments": ""}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
            chunk(
                "tool_calls", tool_calls=[{"index": 1, "id": "c1", "function": {"name": "g", "arguments": "{}"}}]
            ),
        )
        for event in builder.chunk(one)
    ]
    events += builder.end()
    assert [block["type"] for block in builder.message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert builder.message["content"][2] == {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}}
    assert builder.message["stop_reason"] == "tool_use"
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert starts == stops == [0, 1, 2, 3]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
