"""``/v1/responses`` by OpenAI's client: created, streamed, continued, kept, cancelled."""

from __future__ import annotations

import json
import time

import openai
import pytest

from octavo.testing.client import ScriptedClient
from octavo_api.responses_events import ResponseBuilder
from octavo_api.responses_store import Kept, ResponseStore
from octavo_api.schemas_responses import ResponseBody

ONE = {"model": "scripted", "input": "Hello"}


@pytest.fixture
def client(live):
    with live.openai() as client:
        yield client


def prompt_of(live, index=-1):
    return bytes(live.client.calls[index].prompt[1:]).decode()


def test_create(live, client):
    answer = client.responses.create(**ONE, instructions="Be brief.", temperature=0.5, metadata={"a": "b"})
    assert prompt_of(live) == "system: Be brief.\nuser: Hello\nassistant: "
    assert answer.output_text == "Answer 0: " + prompt_of(live)[-24:]
    assert (answer.status, answer.object, answer.metadata, answer.error) == (
        "completed",
        "response",
        {"a": "b"},
        None,
    )
    assert [item.type for item in answer.output] == ["message"]
    assert answer.usage.input_tokens == len(live.client.calls[0].prompt)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert live.client.calls[0].params.temperature == 0.5


def test_items_become_messages(live, client):
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]
    client.responses.create(model="scripted", input=items)
    want = "system: Be kind.\nuser: What?\nassistant: None\ntool: 42\nassistant: "
    assert prompt_of(live) == want


def test_stream(client):
    events = list(client.responses.create(**ONE, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == events[-4].text
    assert events[0].response.status == "in_progress"
    with client.responses.stream(**ONE) as stream:
        assert stream.get_final_response().output_text == text


def test_cut_short(client):
    answer = client.responses.create(**ONE, max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 3


def test_going_on(live, client):
    first = client.responses.create(**ONE, instructions="Only once.")
    second = client.responses.create(model="scripted", input="More", previous_response_id=first.id)
    assert prompt_of(live) == f"user: Hello\nassistant: {first.output_text}\nuser: More\nassistant: "
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(**ONE, previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"


def test_not_stored(client):
    answer = client.responses.create(**ONE, store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def finished(client, response_id):
    deadline = time.monotonic() + 10
    while (found := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_in_the_background(make_live):
    live = make_live(ScriptedClient(delay=0.02))
    with live.openai() as client:
        answer = client.responses.create(**ONE, background=True)
        assert answer.status == "queued"
        found = finished(client, answer.id)
        assert (found.status, found.background) == ("completed", True)
        assert found.output_text.startswith("Answer 0")


def test_cancelling(make_live):
    live = make_live(ScriptedClient(delay=0.05, answer=lambda prompt, index: "x" * 3000))
    with live.openai() as client:
        answer = client.responses.create(**ONE, background=True)
        while not client.responses.retrieve(answer.id).output:
            time.sleep(0.02)
        assert client.responses.cancel(answer.id).status == "cancelled"
        assert len(live.client.aborted) == 1
        assert client.responses.retrieve(answer.id).status == "cancelled"
        done = client.responses.create(**ONE, max_output_tokens=1)
        with pytest.raises(openai.BadRequestError, match="background"):
            client.responses.cancel(done.id)


def test_failures(make_live):
    live = make_live(ScriptedClient(failure=RuntimeError("secret"), fail_after=2))
    with live.openai() as client:
        with pytest.raises(openai.InternalServerError):
            client.responses.create(**ONE)
        events = list(client.responses.create(**ONE, stream=True))
        assert events[-1].type == "response.failed"
        assert "secret" not in events[-1].response.error.message
        answer = client.responses.create(**ONE, background=True)
        assert finished(client, answer.id).status == "failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "judge", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
        ),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "temperature": -1}, "temperature"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "text": {"formt": {}}}, "text.formt"),
        ({"input": "x", "include": ["everything"]}, "include"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "instuctions": "c"}, "instuctions"),
        ({"input": "x", "background": True, "stream": True}, "background"),
        ({"input": "x", "background": True, "temperature": 900.0, "store": False}, "background"),
        ({"input": "x", "previous_response_id": "resp_0"}, "previous_response_id"),
    ],
)
def test_refusals(api, fields, param):
    response = api.call("POST", "/v1/responses", json=fields)
    assert response.status_code in (400, 404), response.text
    assert response.json()["error"]["param"] == param


def test_no_store_no_background(make_api):
    api = make_api(max_responses=0)
    answer = api.call("POST", "/v1/responses", json=ONE).json()
    assert answer["store"] is False
    assert api.call("POST", "/v1/responses", json={**ONE, "background": True}).status_code == 400
    assert api.get(f"/v1/responses/{answer['id']}").status_code == 404


def chunk(**delta):
    finish = delta.pop("finish", None)
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def call(index, arguments, **first):
    function = {"arguments": arguments, **({"name": first.pop("name")} if "name" in first else {})}
    return {"index": index, "function": function, **first}


def test_thoughts_and_calls():
    builder = ResponseBuilder(ResponseBody(input="x"), "m")
    events = [
        *builder.begin(),
        *builder.chunk(chunk(role="assistant", content="")),
        *builder.chunk(chunk(reasoning="Hm", reasoning_content="Hm")),
        *builder.chunk(chunk(reasoning=".")),
        *builder.chunk(chunk(content="Let me see.")),
        *builder.chunk(chunk(tool_calls=[call(0, "", id="c0", name="f")])),
        *builder.chunk(chunk(tool_calls=[call(0, '{"a":')])),
        *builder.chunk(chunk(tool_calls=[call(0, "1}")])),
        *builder.chunk(chunk(tool_calls=[call(1, "{}", id="c1", name="g")], finish="tool_calls")),
        *builder.end(),
    ]
    output = builder.response["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"][0]["text"] == "Hm."
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output[2:]] == [
        ("c0", "f", '{"a":1}'),
        ("c1", "g", "{}"),
    ]
    assert all(item["status"] == "completed" for item in output)
    kinds = [event["type"] for event in events]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4
    assert kinds.count("response.function_call_arguments.delta") == 3
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["status"] == "completed"
    json.dumps(events)


def kept(**fields):
    one = Kept(ResponseBuilder(ResponseBody(input="x", **fields), "m"), [])
    return one, one.builder.response["id"]


def test_the_store_is_bounded():
    store = ResponseStore(2, 0.2, 10_000)
    (a, a_id), (b, b_id), (c, c_id) = kept(), kept(), kept()
    store.add(a)
    store.add(b)
    with pytest.raises(Exception, match="2 responses are being worked on"):
        store.add(c)
    list(a.builder.end())
    store.settle(a)
    store.add(c)  # in the place of the oldest that is done
    with pytest.raises(Exception, match="no response"):
        store.get(a_id)
    list(b.builder.end())
    b.messages.append({"role": "user", "content": "x" * 20_000})  # more bytes than the store holds
    store.settle(b)
    with pytest.raises(Exception, match="no response"):
        store.get(b_id)
    list(c.builder.end())
    store.settle(c)
    assert store.get(c_id) is c
    time.sleep(0.25)
    with pytest.raises(Exception, match="no response"):
        store.get(c_id)
    assert len(store) == 0
    assert store._nbytes == 0


def test_the_form_of_an_answer(api):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    for path, fields in (
        ("/v1/responses", {"input": "x", "text": form}),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "x"}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": schema, "strict": True},
                },
            },
        ),
    ):
        response = api.call("POST", path, json=fields)
        assert response.status_code == 200, response.text
    first, second = (call.params.structured_outputs for call in api.client.calls)
    assert first == second is not None
