"""OpenAI's Python client: sync, async, streams, completions, embeddings, responses, errors."""

from __future__ import annotations

import asyncio
import math

import pytest

openai = pytest.importorskip("openai")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as client:
        yield client


def test_models(client, model):
    assert client.models.retrieve(model).id == model


def test_chat_and_its_stream_say_the_same(client, model):
    fields = {"model": model, "messages": HELLO, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 24


def test_several_answers_with_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=HELLO, n=2, seed=1, max_tokens=5, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for token in answer.choices[0].logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2


def test_completions(client, model):
    answer = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=4, echo=True, logprobs=1)
    assert [choice.text[:3] for choice in answer.choices] == ["One", "Two"]


def test_embeddings(client, model):
    answer = client.embeddings.create(model=model, input=["Hello", "Hello", "world"], dimensions=16)
    first, second, other = (item.embedding for item in answer.data)  # the client asks for base64
    assert first == pytest.approx(second, abs=1e-5)
    assert math.hypot(*first) == pytest.approx(1, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-3)
    plain = client.embeddings.create(model=model, input="Hello", dimensions=16, encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(first, abs=1e-5)


def test_responses(client, model):
    first = client.responses.create(model=model, input="Hello", max_output_tokens=8, temperature=0)
    events = list(
        client.responses.create(model=model, input="Hello", max_output_tokens=8, temperature=0, stream=True)
    )
    assert events[-1].response.output_text == first.output_text
    second = client.responses.create(model=model, input="More", previous_response_id=first.id, max_output_tokens=4)
    assert second.usage.input_tokens > first.usage.input_tokens
    late = client.responses.create(model=model, input="Hello", max_output_tokens=400, background=True)
    assert client.responses.cancel(late.id).status in ("cancelled", "completed", "incomplete")


def test_errors(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HELLO)


def test_async(url, model):
    async def one(client, number):
        stream = await client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=8, seed=number % 2, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, number) for number in range(8)))

    texts = asyncio.run(many())
    assert texts[::2] == texts[:1] * 4
    assert texts[1::2] == texts[1:2] * 4
