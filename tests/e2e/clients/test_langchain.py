"""langchain-openai: chat, streams, embeddings."""

from __future__ import annotations

import pytest

langchain_openai = pytest.importorskip("langchain_openai")


@pytest.fixture(scope="module")
def chat(url, model):
    return langchain_openai.ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=12, stream_usage=True
    )


def test_chat_and_its_stream_say_the_same(chat):
    answer = chat.invoke([("system", "Be brief."), ("human", "Hello")])
    assert answer.usage_metadata["output_tokens"] <= 12
    pieces = list(chat.stream([("system", "Be brief."), ("human", "Hello")]))
    assert "".join(piece.content for piece in pieces) == answer.content
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert [piece.usage_metadata for piece in pieces if piece.usage_metadata]


def test_batch(chat):
    assert len(chat.batch(["One", "Two", "Three"])) == 3


def test_responses_api(url, model):
    chat = langchain_openai.ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model=model, temperature=0, use_responses_api=True, max_tokens=12
    )
    assert chat.invoke("Hello").content is not None
    assert list(chat.stream("Hello"))


def test_embeddings(url, model):
    """It sends token ids of OpenAI's own tokenizer unless told not to."""
    embeddings = langchain_openai.OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model=model, check_embedding_ctx_length=False
    )
    documents = embeddings.embed_documents(["Hello", "world"])
    assert documents[0] == pytest.approx(embeddings.embed_query("Hello"), abs=1e-5)
