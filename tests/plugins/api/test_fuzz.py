"""Whatever comes as a body: never a 500, always a nested error or an answer."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_api.schemas_chat import ChatBody, Message
from octavo_api.schemas_completions import CompletionBody
from octavo_api.unsupported import _CHAT, _COMPLETION

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.integers(-2, 300)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["stop", "auto", "none", "user", "scripted"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]) | values,
            "content": st.text(max_size=20)
            | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9)}))
            | values,
            **{name: values for name in Message.model_fields if name not in ("role", "content")},
        },
    ),
    max_size=3,
)


def bodies(names, **likely):
    fields = dict.fromkeys(names, values)
    fields.update(likely)
    return st.dictionaries(st.sampled_from(sorted(names)), st.none(), max_size=6).flatmap(
        lambda chosen: st.fixed_dictionaries(
            {name: fields[name] for name in chosen} | {key: likely[key] for key in likely}
        )
    )


chats = bodies({*ChatBody.model_fields, *_CHAT}, messages=messages)
completions = bodies(
    {*CompletionBody.model_fields, *_COMPLETION},
    prompt=st.text(max_size=9) | st.lists(st.integers(-1, 300), max_size=5) | values,
)


def check(response):
    assert response.status_code in (200, 400, 404), response.text
    assert len(response.content) < 200_000
    if response.status_code == 200:
        assert "error" not in response.text[:20]
        return
    error = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]


def post(api, path, content):
    return api.call("POST", path, content=content, headers={"content-type": "application/json"})


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(body=chats)
def test_chat_bodies(api, body):
    check(post(api, "/v1/chat/completions", json.dumps(body)))


@FUZZ
@given(body=completions)
def test_completion_bodies(api, body):
    check(post(api, "/v1/completions", json.dumps(body)))


@FUZZ
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]":,0e.-tfn\\u ', max_size=60).map(str.encode))
def test_bytes(api, content):
    response = post(api, "/v1/chat/completions", content)
    check(response)
    assert response.status_code == 400


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    headers=st.dictionaries(
        st.sampled_from(["authorization", "x-request-id", "origin", "content-length", "accept"]),
        st.binary(max_size=30),
    )
)
def test_headers(make_api, headers):
    api = make_api(api_key="k")
    clean = {name: bytes(byte for byte in value if byte not in b"\r\n\0") for name, value in headers.items()}
    assert api.get("/v1/models", headers=clean).status_code in (200, 401)
