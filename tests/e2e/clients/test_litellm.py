"""LiteLLM's ``hosted_vllm`` provider: chat, streams, embeddings, rerank, responses."""

from __future__ import annotations

import pytest

litellm = pytest.importorskip("litellm")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def fields(url, model):
    return {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "none"}


def test_chat_and_its_stream_say_the_same(fields):
    answer = litellm.completion(**fields, messages=HELLO, max_tokens=12, temperature=0)
    stream = litellm.completion(**fields, messages=HELLO, max_tokens=12, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == answer.choices[0].message.content


def test_embeddings(fields):
    assert len(litellm.embedding(**fields, input=["Hello", "world"]).data) == 2


def test_rerank(fields):
    answer = litellm.rerank(**fields, query="Hello", documents=["world", "Hello"], top_n=1)
    assert answer.results[0]["index"] == 1


def test_responses(fields):
    assert litellm.responses(**fields, input="Hello", max_output_tokens=16).output


def test_errors(fields):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**fields, messages=HELLO, temperature=-1.0)
