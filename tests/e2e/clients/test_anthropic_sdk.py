"""Anthropic's Python client: messages, streams, counting, errors."""

from __future__ import annotations

import pytest

anthropic = pytest.importorskip("anthropic")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(url):
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_message_and_its_stream_say_the_same(client, model):
    fields = {"model": model, "messages": HELLO, "max_tokens": 16, "system": "Be brief."}
    fields["extra_body"] = {"temperature": 0}  # the client has no word for it any more
    message = client.messages.create(**fields)
    with client.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "".join(block.text for block in message.content)
    assert final.stop_reason == message.stop_reason
    usage = final.usage
    assert usage.output_tokens == message.usage.output_tokens
    whole = message.usage.input_tokens + message.usage.cache_read_input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == whole


def test_counting(client, model):
    counted = client.messages.count_tokens(model=model, messages=HELLO)
    message = client.messages.create(model=model, messages=HELLO, max_tokens=1)
    assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens
    assert message.stop_reason == "max_tokens"


def test_errors(client, model):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nobody", messages=HELLO, max_tokens=4)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=model, messages=HELLO, max_tokens=0)
