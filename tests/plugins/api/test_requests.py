"""What a request may hold, what reaches the engine, and what is refused."""

from __future__ import annotations

import json

import pytest

from octavo.params import SamplingParams
from octavo.testing.client import BOS, ScriptedClient


def refused(response, status=400):
    """The error object, which has the right shape."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


def test_every_sampling_field_reaches_the_engine(api):
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "seed": 5,
        "min_tokens": 2,
        "stop": ["x", "y"],
        "stop_token_ids": [1, 2],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "bad_words": ["bad"],
        "allowed_token_ids": [3, 4],
        "extra": {"my-processor": {"strength": 2}},
    }
    extra = {
        "logit_bias": {"65": 2, "66": -1.5},
        "max_tokens": 9,
        "priority": -3,
        "cache_salt": "tenant-1",
        "user": "u",
        "request_id": "label",
    }
    assert api.chat(**fields, **extra, logprobs=True, top_logprobs=3).status_code == 200
    call = api.client.calls[0]
    expected = SamplingParams(**fields, logit_bias={65: 2, 66: -1.5}, max_tokens=9, logprobs=3)
    assert call.params == expected
    assert (call.priority, call.cache_salt, call.adapter) == (-3, "tenant-1", None)
    assert call.request_id == "label"
    assert (call.arrival.model, call.arrival.user, call.arrival.prompt_length) == (
        "scripted",
        "u",
        len(call.prompt),
    )


def test_prompts_may_be_cut(api):
    echoed = api.complete("abcdef", truncate_prompt_tokens=3, echo=True, max_tokens=1).json()
    assert echoed["choices"][0]["text"][:3] == "def"
    api.complete([1, 2, 3], truncate_prompt_tokens=2)
    api.complete("ab", truncate_prompt_tokens=-1)
    api.chat("abc", truncate_prompt_tokens=4)
    assert [call.prompt for call in api.client.calls] == [[100, 101, 102], [2, 3], [BOS, 97, 98], [*b"nt: "]]
    assert refused(api.complete("ab", truncate_prompt_tokens=0))["param"] == "prompt"


def test_null_means_absent(api):
    names = ["temperature", "n", "stop", "seed", "max_tokens", "logit_bias", "stream", "tools", "logprobs", "user"]
    assert api.chat(**dict.fromkeys(names)).status_code == 200
    assert api.client.calls[0].params == SamplingParams(max_tokens=None)


def test_defaults_of_the_checkpoint_lie_under_the_request(make_api):
    api = make_api(ScriptedClient(default_sampling={"temperature": 0.2, "top_k": 5, "eos_token_id": 2}))
    api.chat(top_k=9)
    api.complete()
    chat, completion = (call.params for call in api.client.calls)
    assert (chat.temperature, chat.top_k) == (0.2, 9)
    assert (completion.temperature, completion.top_k, completion.max_tokens) == (0.2, 5, 16)


def test_default_max_tokens(make_api):
    api = make_api(ScriptedClient(max_length=64), default_max_tokens=50)
    api.chat("short")
    assert api.client.calls[0].params.max_tokens == 64 - len(api.client.calls[0].prompt)
    api.chat("short", max_completion_tokens=3)
    assert api.client.calls[1].params.max_tokens == 3


def test_roles_and_parts_reach_the_template(api):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    response = api.call("POST", "/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    text = bytes(api.client.calls[0].prompt[1:]).decode()
    assert text == "system: Be brief.\nuser: one\ntwo\nassistant: None\ntool: 42\nassistant: "
    assert response.json()["model"] == "scripted"


def test_continuing_a_message(api):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    api.call("POST", "/v1/chat/completions", json={"messages": messages, "continue_final_message": True})
    assert bytes(api.client.calls[0].prompt[1:]).decode().endswith("assistant: Well,")
    both = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    assert refused(api.call("POST", "/v1/chat/completions", json=both))["param"] == "continue_final_message"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": 5.0}, "max_tokens", "valid integer"),
        ({"max_tokens": -1}, "max_tokens", "at least 1"),
        ({"max_tokens": 10**30}, "max_tokens", "less than or equal"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "contradict"),
        ({"temperature": True}, "temperature", "valid number, not true"),
        ({"temperature": "0.7"}, "temperature", "valid number"),
        ({"temperature": 10**400}, "temperature", "finite"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "between 1"),
        ({"n": 33}, "n", "at most 32"),
        ({"stop": [1]}, "stop", "list of strings"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": [""]}, "stop", "empty"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "pattern"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "999999"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "empty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "greater than or equal to 0"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"logprobs": 5}, "logprobs", "boolean"),
        ({"cache_salt": "a/b"}, "cache_salt", "pattern"),
        ({"cache_salt": "x" * 129}, "cache_salt", "pattern"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "knows"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "streamed"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "valid array"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "content is missing"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "string or a list"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "knows"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "text only"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0]", "tool message"),
        ({"chat_template_kwargs": {"other": 1}}, "chat_template_kwargs", "enable_thinking"),
        ({"chat_template_kwargs": {"thinking": [1]}}, "chat_template_kwargs", "true, false"),
        ({"chat_template": "{{ x }}"}, "chat_template", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "json_schema"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"x" * 5000: 1}, "x" * 100 + "…", "knows"),
    ],
)
def test_refusals(api, fields, param, words):
    error = refused(api.chat(**fields))
    assert error["param"] == param
    assert words in error["message"]
    assert len(error["message"]) < 600
    assert api.client.calls == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"], "service_tier": "auto", "store": False},
        {"best_of": 1, "use_beam_search": False, "metadata": {}, "documents": []},
        {"safety_identifier": "s", "prompt_cache_key": "k", "user": "u"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_neutral_values_are_fine(api, fields):
    assert api.chat(**fields).status_code == 200


def test_unknown_fields_may_be_ignored_but_unsupported_ones_not(make_api):
    api = make_api(unknown_fields="ignore")
    assert api.chat(temprature=1).status_code == 200
    assert refused(api.chat(audio={}))["code"] == "unsupported_parameter"


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], [True], [-1], 5, None, {"a": 1}, [[1], []], [1.5], [2**31]])
def test_bad_prompts(api, prompt):
    assert refused(api.complete(prompt))["param"] == "prompt"


def test_prompt_shapes(api):
    for prompt, expected in (
        ("ab", [[BOS, 97, 98]]),
        (["a", "b"], [[BOS, 97], [BOS, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98]], [[97], [98]]),
    ):
        api.client.calls.clear()
        response = api.complete(prompt)
        assert response.status_code == 200, response.text
        assert sorted(call.prompt for call in api.client.calls) == expected
    api.complete("a", add_special_tokens=False)
    assert api.client.calls[-1].prompt == [97]


def test_one_bad_prompt_refuses_the_call_and_ends_the_others(make_api):
    api = make_api(ScriptedClient(delay=0.001))
    assert refused(api.complete([[65], [99999], [66]]))["param"] == "prompt"
    assert len(api.client.aborted) == len(api.client.calls)


def test_too_many_prompts(make_api):
    assert "at most 2" in refused(make_api(max_prompts=2).complete(["a", "b", "c"]))["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "line 1 column 1"),
        (b'{"model": "x",}', "line 1 column 15"),
        (b"", "EOF"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"messages": [{"role":"user","content":"\xff"}]}', "unicode"),
        (b'{"messages": [{"role":"user","content":"\\ud800"}]}', "Invalid JSON"),
        (b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion"),
        (b'{"seed":' + b"9" * 5000 + b"}", "out of range"),
    ],
)
def test_broken_json(api, body, words):
    for path in ("/v1/chat/completions", "/v1/completions"):
        error = refused(api.call("POST", path, content=body, headers={"content-type": "application/json"}))
        assert words in error["message"]


def test_many_errors_make_a_short_answer(api):
    body = json.dumps({"messages": [{}] * 50_000, "stop": [1] * 1000, "temperature": "y" * 100_000})
    response = api.call("POST", "/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    refused(response)
    assert len(response.content) < 1500


def test_model_without_a_template(make_api):
    error = refused(make_api(ScriptedClient(has_chat_template=False)).chat())
    assert "/v1/completions" in error["message"]


def test_served_names_replace_the_models_own(make_api):
    api = make_api(ScriptedClient(adapters=("sql",)), served_names=["small", "smaller"])
    listing = api.get("/v1/models").json()
    assert [entry["id"] for entry in listing["data"]] == ["small", "smaller", "sql"]
    assert listing["data"][2]["parent"] == "small"
    assert api.get("/v1/models/smaller").json()["root"] == "/models/scripted"
    error = refused(api.chat(model="smal"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "Did you mean 'small'" in error["message"]
    assert refused(api.chat(model="scripted"), 404)
    assert api.chat(model="smaller").json()["model"] == "smaller"
