"""Shapes of answers that the official client does not look at, and completions' echo and log-probabilities."""

from __future__ import annotations

import json
from itertools import chain

import pytest

from octavo.testing.client import ScriptedClient


def events(response):
    """The JSON events of a stream, which ends as it must."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_completion_logprobs_and_offsets(make_api):
    api = make_api(ScriptedClient(answer=lambda prompt, index: "a€b"))
    choice = api.complete("x", logprobs=2).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "a€b"
    assert logprobs["tokens"] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b", "<eos>"]
    assert logprobs["text_offset"] == [0, 1, 2, 2, 2, 3]
    assert logprobs["token_logprobs"] == [-0.25] * 6
    assert logprobs["top_logprobs"][0] == {"a": -0.25, "b": -1.25}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(api, stream):
    fields = {"echo": True, "logprobs": 1, "max_tokens": 2, "stream": stream}
    response = api.complete("hé", **fields)
    choices = [event["choices"][0] for event in events(response)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "héAn"
    pieces = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    whole = {name: [*chain(*(piece[name] for piece in pieces))] for name in pieces[0]}
    assert whole["tokens"] == ["<bos>", "h", "bytes:\\xc3", "bytes:\\xa9", "A", "n"]
    assert whole["token_logprobs"] == [None, *[-0.25] * 5]
    assert whole["top_logprobs"][0] is None
    assert whole["text_offset"] == [0, 0, 1, 2, 2, 3]


def test_echo_of_token_ids(api):
    (choice,) = api.complete([104, 105], echo=True, max_tokens=3).json()["choices"]
    assert choice["text"] == "hiAns"
    assert choice["logprobs"] is None


def test_prompt_logprobs(api):
    body = api.complete("hi", prompt_logprobs=1, logprobs=0).json()["choices"][0]
    assert body["prompt_logprobs"][0] is None
    assert body["prompt_logprobs"][1] == {"104": {"logprob": -0.25, "rank": 1, "decoded_token": "h"}}
    assert body["logprobs"]["top_logprobs"][0] == {"A": -0.25}
    chat = api.chat(prompt_logprobs=0).json()
    assert len(chat["prompt_logprobs"]) == len(api.client.calls[-1].prompt)


def test_minus_infinity_is_a_number_in_json(make_api):
    class Impossible(ScriptedClient):
        async def generate(self, *args, **kwargs):
            async for delta in super().generate(*args, **kwargs):
                for token in delta.logprobs or ():
                    token.logprob = float("-inf")
                yield delta

    response = make_api(Impossible()).chat(logprobs=True, max_tokens=1)
    assert response.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize("path", ["chat", "complete"])
def test_token_ids(api, path):
    call = getattr(api, path)
    plain = call("hi", return_token_ids=True, max_tokens=5).json()
    choices = [
        event["choices"][0] for event in events(call("hi", return_token_ids=True, max_tokens=5, stream=True))
    ]
    prompt = api.client.calls[-1].prompt
    assert (plain if path == "chat" else plain["choices"][0])["prompt_token_ids"] == prompt
    assert choices[0]["prompt_token_ids"] == prompt
    assert plain["choices"][0]["token_ids"] == list(b"Answe")
    assert [*chain(*(choice.get("token_ids", []) for choice in choices))] == list(b"Answe")


def test_text_is_exact_json_whatever_it_holds(make_api):
    text = 'quote " backslash \\ newline \n tab \t nul \x00 line separator \u2028 emoji 🦆 </script>'
    api = make_api(ScriptedClient(answer=lambda prompt, index: text, tokens_per_delta=1))
    assert api.chat().json()["choices"][0]["message"]["content"] == text
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events(api.chat(stream=True))]
    assert "".join(deltas) == text


def test_model_name_is_escaped(make_api):
    name = 'a"b\\c%d'
    api = make_api(served_names=[name])
    assert events(api.chat(model=name, stream=True))[0]["model"] == name


def test_error_in_mid_stream_ends_with_done(make_api):
    api = make_api(ScriptedClient(failure=RuntimeError("secret"), fail_after=2))
    found = events(api.chat(stream=True))
    assert found[-1]["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(found)


def test_cached_tokens_may_be_kept_secret(make_api):
    assert "prompt_tokens_details" not in make_api(report_cached_tokens=False).chat().json()["usage"]


def test_abort_is_told(make_api):
    class Stopping(ScriptedClient):
        async def generate(self, *args, **kwargs):
            async for delta in super().generate(*args, **kwargs):
                delta.finish_reason = "abort"
                yield delta
                return

    assert make_api(Stopping()).chat().json()["choices"][0]["finish_reason"] == "abort"
