"""Embeddings, scores, and tokenizing over HTTP."""

from __future__ import annotations

import base64
import struct

import numpy as np
import pytest

from octavo.errors import OverloadedError
from octavo.testing.client import BOS, ScriptedClient


def vector(ids, dimensions=4):
    values = np.array([len(ids), ids[0], ids[-1], 1], np.float32)[:dimensions]
    return values / np.linalg.norm(values)


def refusal(response, status=400):
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.fixture
def embed(api):
    return lambda **fields: api.call("POST", "/v1/embeddings", json=fields)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["ab", "c"], [[BOS, 97, 98], [BOS, 99]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["a", [7]], [[BOS, 97], [7]]),
    ],
)
def test_every_form_of_input(embed, given, ids):
    answer = embed(input=given, model="scripted").json()
    assert [item["index"] for item in answer["data"]] == list(range(len(ids)))
    for item, prompt in zip(answer["data"], ids, strict=True):
        np.testing.assert_allclose(item["embedding"], vector(prompt), rtol=1e-6)
    total = sum(map(len, ids))
    assert answer["usage"] == {"prompt_tokens": total, "total_tokens": total}
    assert (answer["object"], answer["model"]) == ("list", "scripted")


def test_base64_and_dimensions(embed):
    answer = embed(input="ab", encoding_format="base64", dimensions=2).json()
    found = struct.unpack("<2f", base64.b64decode(answer["data"][0]["embedding"]))
    np.testing.assert_allclose(found, vector([BOS, 97, 98], 2), rtol=1e-6)
    plain = embed(input="ab", normalize=False).json()["data"][0]["embedding"]
    assert plain == [3.0, 256.0, 98.0, 1.0]


def test_fields_reach_the_engine(api, embed):
    fields = {
        "priority": 3,
        "cache_salt": "s",
        "user": "u",
        "truncate_prompt_tokens": 2,
        "add_special_tokens": False,
    }
    assert embed(input="abcd", **fields).status_code == 200
    call = api.client.calls[0]
    assert (call.prompt, call.priority, call.cache_salt, call.arrival.user) == ([99, 100], 3, "s", "u")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [""], "add_special_tokens": False}, "prompt"),
        ({"input": 5}, "input"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": "x", "embed_dtype": "float16"}, "embed_dtype"),
        ({"input": "x", "encodingformat": "float"}, "encodingformat"),
        ({"input": [999]}, "prompt"),
    ],
)
def test_refusals(embed, fields, param):
    assert refusal(embed(**fields))["param"] == param


def test_too_many_inputs(make_api):
    api = make_api(max_inputs=2)
    error = refusal(api.call("POST", "/v1/embeddings", json={"input": ["a", "b", "c"]}))
    assert "at most 2" in error["message"]


def test_one_refusal_ends_the_others(make_api):
    class Full(ScriptedClient):
        async def embed(self, prompt, **options):
            if len(self.calls) >= 3:
                raise OverloadedError("full", retry_after=9)
            return await super().embed(prompt, **options)

    response = make_api(Full()).call("POST", "/v1/embeddings", json={"input": ["a"] * 50})
    assert refusal(response, 429)["code"] == "overloaded"
    assert response.headers["retry-after"] == "9"


def test_scores_only_where_the_operator_wants_them(make_api):
    body = {"text_1": "a", "text_2": ["a", "zz"]}
    assert "/v1/score" in refusal(make_api().call("POST", "/v1/score", json=body), 404)["message"]
    api = make_api(scoring="cosine")
    answer = api.call("POST", "/v1/score", json=body).json()
    scores = [item["score"] for item in answer["data"]]
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] == pytest.approx(float(vector([BOS, 97]) @ vector([BOS, 122, 122])))
    error = refusal(api.call("POST", "/score", json={"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}))
    assert error["param"] == "text_1"


def test_rerank(make_api):
    api = make_api(scoring="cosine")
    body = {"query": "a", "documents": ["zzzzzz", "a", "b"], "top_n": 2}
    answer = api.call("POST", "/v1/rerank", json=body).json()
    assert [item["index"] for item in answer["results"]] == [1, 2]
    assert answer["results"][0]["document"] == {"text": "a"}
    assert answer["results"][0]["relevance_score"] == pytest.approx(1.0)
    bare = api.call("POST", "/v2/rerank", json={**body, "return_documents": False}).json()
    assert "document" not in bare["results"][0]


def test_tokenize_and_back(api):
    answer = api.call("POST", "/tokenize", json={"prompt": "aé", "return_token_strs": True}).json()
    assert answer["tokens"] == [BOS, *"aé".encode()]
    assert (answer["count"], answer["max_model_len"]) == (4, 4096)
    assert answer["token_strs"] == ["<bos>", "a", "\ufffd", "\ufffd"]
    bare = api.call("POST", "/tokenize", json={"prompt": "a", "add_special_tokens": False}).json()
    assert (bare["tokens"], bare["token_strs"]) == ([97], None)
    assert api.call("POST", "/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "<bos>aé"}
    body = {"tokens": answer["tokens"], "skip_special_tokens": True}
    assert api.call("POST", "/detokenize", json=body).json() == {"prompt": "aé"}


def test_tokenize_a_conversation(api):
    messages = [{"role": "user", "content": "Hi"}]
    answer = api.call("POST", "/tokenize", json={"messages": messages}).json()
    assert bytes(answer["tokens"][1:]).decode() == "user: Hi\nassistant: "
    for body, param in (
        ({}, "prompt"),
        ({"prompt": "x", "messages": messages}, "prompt"),
        ({"messages": messages, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": messages, "chat_template_kwargs": {"evil": 1}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"prompt": "x", "modle": "m"}, "modle"),
    ):
        assert refusal(api.call("POST", "/tokenize", json=body))["param"] == param
    assert refusal(api.call("POST", "/detokenize", json={"tokens": [999]}))["param"] == "prompt"


def test_unknown_fields_may_be_ignored(make_api):
    api = make_api(unknown_fields="ignore")
    assert api.call("POST", "/v1/embeddings", json={"input": "x", "colour": 1}).status_code == 200
    assert api.call("POST", "/tokenize", json={"prompt": "x", "colour": 1}).status_code == 200
