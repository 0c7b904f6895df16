"""What a caller asks, checked and turned into a message."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.contracts.api import Arrival
from octavo.engine.admission import Admission, Limits
from octavo.errors import NotFoundError, RequestError
from octavo.params import SamplingParams

EOS = 257


class ByteTokenizer:
    def __init__(self):
        self.encoded = []

    def encode(self, text, add_special_tokens=True):
        self.encoded.append(text)
        return [*([256] if add_special_tokens else []), *text.encode()]


def admission(max_length=32, **more):
    limits = Limits(
        max_length=max_length, vocab_size=300, eos_ids=(EOS,), longest_token=4, processors=("ban_vowels",)
    )
    return Admission(ByteTokenizer(), limits, seed=0, **more)


def submit(gate=None, prompt="hello", params=None, **more):
    gate, params = gate or admission(), params or SamplingParams()
    ids, bad_words = gate.prepare(prompt, params)
    return gate.submit(1, ids, params, bad_word_ids=bad_words, **more)


def refused(param, *words, **arguments):
    with pytest.raises(RequestError) as caught:
        submit(**arguments)
    assert caught.value.param == param
    for word in words:
        assert str(word) in str(caught.value)
    return caught.value


def test_text_and_ids_become_prompts():
    assert submit(prompt="hi").prompt_ids == [256, 104, 105]
    assert submit(prompt=[1, 2, 3]).prompt_ids == [1, 2, 3]
    assert submit(prompt=np.array([1, 2])).prompt_ids == [1, 2]
    assert all(type(token) is int for token in submit(prompt=np.array([1, 2])).prompt_ids)


def test_long_text_is_refused_before_it_is_tokenised():
    gate = admission()
    error = refused("prompt", 129, 32, gate=gate, prompt="x" * 129)
    assert error.code == "context_length_exceeded"
    assert gate._tokenizer.encoded == []
    refused("prompt", 32, gate=gate, prompt="x" * 128)
    assert gate._tokenizer.encoded == ["x" * 128]


@pytest.mark.parametrize("prompt", [[], np.array([], dtype=int)])
def test_empty_prompts_are_refused(prompt):
    refused("prompt", "empty", prompt=prompt)


def test_prompt_must_leave_room_for_an_answer():
    assert submit(prompt=[1] * 31, params=SamplingParams(max_tokens=1)).max_tokens == 1
    error = refused("prompt", "maximum context length is 32 tokens, however the prompt has 32", prompt=[1] * 32)
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "prompt", [[-1], [1, 300], [1.5], ["a"], [True], [None], 7, None, {"a": 1}, b"hi", {1}, {1: 2}, [[1]]]
)
def test_prompts_of_wrong_type_or_range_are_refused(prompt):
    refused("prompt", prompt=prompt)


def test_half_surrogates_are_refused_wherever_text_is_taken():
    refused("prompt", "surrogate", prompt="a\ud800")
    refused("stop", "surrogate", params=SamplingParams(stop=["\udfff"]))
    refused("bad_words", "surrogate", params=SamplingParams(bad_words=["\udfff"]))
    refused("cache_salt", "surrogate", cache_salt="\udfff")


def test_max_tokens():
    assert submit(prompt=[1] * 10, params=SamplingParams(max_tokens=None)).max_tokens == 22
    assert submit(prompt=[1] * 10, params=SamplingParams(max_tokens=22)).max_tokens == 22
    refused("max_tokens", 23, 10, 33, 32, 22, prompt=[1] * 10, params=SamplingParams(max_tokens=23))
    refused("max_tokens", prompt=[1] * 10, params=SamplingParams(max_tokens=10**30))
    refused("min_tokens", 25, 22, prompt=[1] * 10, params=SamplingParams(max_tokens=None, min_tokens=25))


def test_ids_that_end_an_answer():
    message = submit(params=SamplingParams(stop_token_ids=[5, EOS, 5]))
    assert (message.stop_ids, message.eos_ids) == ([EOS, 5], [EOS])
    message = submit(params=SamplingParams(stop_token_ids=[5], ignore_eos=True))
    assert (message.stop_ids, message.eos_ids) == ([5], [])


def test_bad_words_count_with_and_without_a_space():
    assert submit(params=SamplingParams(bad_words=["ab", " ab"])).bad_word_ids == [[97, 98], [32, 97, 98]]
    refused("bad_words", 256, params=SamplingParams(bad_words=["x" * 257]))


def test_seeds():
    given = SamplingParams(seed=7)
    assert submit(params=given).seed == 7
    assert 0 <= submit(params=SamplingParams(seed=-1)).seed < 2**63
    gate = admission()
    drawn = [submit(gate).seed for _ in range(20)]
    assert len(set(drawn)) == 20
    again = admission()
    assert [submit(again).seed for _ in range(20)] == drawn
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_vocabulary_and_lengths_of_parameters():
    refused("stop_token_ids", 300, params=SamplingParams(stop_token_ids=[300]))
    refused("logit_bias", 300, params=SamplingParams(logit_bias={300: 1.0}))
    refused("allowed_token_ids", -1, params=SamplingParams(allowed_token_ids=[-1]))
    refused("stop", 1024, params=SamplingParams(stop=["x" * 1025]))


def test_top_k_beyond_the_vocabulary_means_all():
    assert submit(params=SamplingParams(top_k=10**30)).params.top_k == 0
    assert submit(params=SamplingParams(top_k=300)).params.top_k == 300


def test_options_of_unknown_processors_are_refused():
    assert submit(params=SamplingParams(extra={"ban_vowels": {"strength": 1}})).params.extra
    refused("extra", "ban_vowel", "Did you mean 'ban_vowels'?", params=SamplingParams(extra={"ban_vowel": 1}))


@pytest.mark.parametrize("priority", [2**31, -(2**31) - 1, 1.0, "1", True, None])
def test_priorities_are_small_integers(priority):
    refused("priority", priority=priority)


@pytest.mark.parametrize("salt", ["", "x" * 257, 5])
def test_cache_salts_are_short_text(salt):
    refused("cache_salt", cache_salt=salt)
    assert submit(cache_salt="tenant-1").cache_salt == "tenant-1"


def test_unknown_adapters_are_not_found():
    with pytest.raises(NotFoundError, match="Did you mean 'sql'") as caught:
        submit(admission(adapters=["sql"]), adapter="sqll")
    assert caught.value.code == "model_not_found"
    assert submit(admission(adapters=["sql"]), adapter="sql").adapter == "sql"


def test_a_hook_selects_where_the_request_does_not():
    seen = []

    def select(arrival, adapters):
        seen.append((arrival, adapters))
        return "sql"

    gate = admission(adapters=["sql", "chat"], select_adapter=select)
    arrival = Arrival("gpt", 6, {"x-team": "data"})
    assert submit(gate, arrival=arrival).adapter == "sql"
    assert seen == [(arrival, ("sql", "chat"))]
    assert submit(gate, adapter="chat").adapter == "chat"
    assert len(seen) == 1
    assert submit(gate, prompt=[1, 2]).adapter == "sql"
    assert seen[1][0] == Arrival(None, 2, {})
