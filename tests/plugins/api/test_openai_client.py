"""What the official Python client makes of the surface."""

from __future__ import annotations

import openai
import pytest

from octavo.contracts.api import Health
from octavo.errors import EngineDeadError, NotReadyError, OverloadedError
from octavo.testing.client import ScriptedClient

HELLO = [{"role": "user", "content": "Hello"}]


def test_chat(live):
    with live.openai() as client:
        answer = client.chat.completions.create(model="scripted", messages=HELLO)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "scripted"
    assert answer.system_fingerprint.startswith("octavo-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content == "Answer 0: user: Hello\nassistant: "
    assert answer.usage.completion_tokens == len(choice.message.content) + 1  # bytes and the end
    assert answer.usage.prompt_tokens == len("user: Hello\nassistant: ") + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert answer._request_id.startswith("req-")


def test_chat_stream_is_the_plain_answer_in_pieces(live):
    with live.openai() as client:
        plain = client.chat.completions.create(model="scripted", messages=HELLO, n=2)
        stream = client.chat.completions.create(
            model="scripted", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert (mine[0].delta.role, mine[0].delta.content) == ("assistant", "")
        assert all(choice.delta.role is None for choice in mine[1:])
        assert "".join(choice.delta.content or "" for choice in mine) == plain.choices[index].message.content
        assert [choice.finish_reason for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == "stop"
    order = [chunk.choices[0].index for chunk in chunks if chunk.choices]
    assert order != sorted(order), "the two answers come side by side"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_in_every_chunk(live):
    options = {"include_usage": True, "continuous_usage_stats": True}
    with live.openai() as client:
        chunks = list(
            client.chat.completions.create(model="scripted", messages=HELLO, stream=True, stream_options=options)
        )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] > 0


def test_chat_logprobs(live):
    fields = {"model": "scripted", "messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    with live.openai() as client:
        plain = client.chat.completions.create(**fields).choices[0].logprobs.content
        chunks = list(client.chat.completions.create(**fields, stream=True))
    assert [entry.token for entry in plain] == list("Answ")
    assert [bytes(entry.bytes) for entry in plain] == [b"A", b"n", b"s", b"w"]
    assert all(entry.logprob == -0.25 and len(entry.top_logprobs) == 2 for entry in plain)
    assert [top.token for top in plain[0].top_logprobs] == ["A", "B"]
    found = [c.logprobs.content for chunk in chunks for c in chunk.choices if c.logprobs is not None]
    assert [entry for entries in found for entry in entries] == plain


def test_completion_and_stream(live):
    with live.openai() as client:
        plain = client.completions.create(model="scripted", prompt=["one", "two"], n=2, max_tokens=12)
        chunks = list(
            client.completions.create(model="scripted", prompt=["one", "two"], n=2, max_tokens=12, stream=True)
        )
    assert plain.id.startswith("cmpl-")
    assert plain.object == "text_completion"
    texts = {choice.index: choice.text for choice in plain.choices}
    assert texts == {0: "Answer 0: on", 1: "Answer 1: on", 2: "Answer 0: tw", 3: "Answer 1: tw"}
    streamed = dict.fromkeys(texts, "")
    reasons = {}
    for chunk in chunks:
        (choice,) = chunk.choices
        streamed[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    assert streamed == texts
    assert reasons == dict.fromkeys(texts, "length")


def test_stop_string(live):
    with live.openai() as client:
        answer = client.chat.completions.create(model="scripted", messages=HELLO, stop=["user"]).choices[0]
        assert answer.message.content == "Answer 0: "
        assert (answer.finish_reason, answer.model_extra["stop_reason"]) == ("stop", "user")
        kept = client.chat.completions.create(
            model="scripted", messages=HELLO, stop="user", extra_body={"include_stop_str_in_output": True}
        )
        assert kept.choices[0].message.content == "Answer 0: user"


def test_models(make_live):
    live = make_live(ScriptedClient(adapters=("sql",)))
    with live.openai() as client:
        assert [model.id for model in client.models.list()] == ["scripted", "sql"]
        assert client.models.retrieve("sql").model_extra["parent"] == "scripted"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
        client.chat.completions.create(model="sql", messages=HELLO)
    assert live.client.calls[-1].adapter == "sql"


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"n": 10**6}, openai.BadRequestError, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"response_format": {"type": "yaml"}}, openai.BadRequestError, "response_format.type"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature"),
        ({"extra_body": {"top_logprobs": 2}}, openai.BadRequestError, "top_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_become_the_right_exception(live, fields, kind, param, stream):
    with live.openai() as client, pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "scripted", "messages": HELLO, "stream": stream, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id.startswith("req-")


@pytest.mark.parametrize("stream", [False, True])
def test_server_errors_become_the_right_exception(make_live, stream):
    fields = {"model": "scripted", "messages": HELLO, "stream": stream}
    for failure, kind, status, after in (
        (OverloadedError("full", retry_after=7), openai.RateLimitError, 429, "7"),
        (NotReadyError("starting", retry_after=2), openai.InternalServerError, 503, "2"),
        (EngineDeadError("gone"), openai.InternalServerError, 500, None),
    ):
        with make_live(ScriptedClient(failure=failure)).openai() as client:
            with pytest.raises(kind) as caught:
                client.chat.completions.create(**fields)
            assert caught.value.status_code == status
            assert caught.value.response.headers.get("retry-after") == after


def test_error_in_mid_stream(make_live):
    live = make_live(ScriptedClient(failure=RuntimeError("secret detail"), fail_after=2))
    with live.openai() as client:
        stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        texts = []
        with pytest.raises(openai.APIError) as caught:
            texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(texts) == "Answer"
    assert "secret" not in str(caught.value)
    assert "req-" in str(caught.value)


def test_api_key(make_live):
    live = make_live(api_key="correct horse")
    with live.openai("correct horse") as client:
        assert client.models.list().data
    with live.openai("wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


def test_not_ready_refuses_new_requests(make_live):
    live = make_live(ScriptedClient(state=Health(alive=True, ready=False, heartbeat_age=0.0, reason="draining")))
    with live.openai() as client, pytest.raises(openai.InternalServerError, match="draining") as caught:
        client.chat.completions.create(model="scripted", messages=HELLO)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "5"
