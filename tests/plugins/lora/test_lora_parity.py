"""Answers with adapters equal PEFT's, whatever else is in the batch and however many slots there are."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def tokens(outputs: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_every_kind_answers_as_in_peft(kind, adapters, oracle, make_llm, prompts):
    llm = make_llm({"one": adapters[kind]})
    asked = prompts(3)
    found = tokens(llm.generate(asked, GREEDY, adapter="one"))
    assert found == [oracle.answer(adapters[kind], prompt, 12) for prompt in asked]
    if "bias" not in kind:  # PEFT can't merge it where the base layer has no bias
        assert found == [oracle.answer(adapters[kind], prompt, 12, merged=True) for prompt in asked]
    assert found != [oracle.answer(None, prompt, 12) for prompt in asked]


def test_log_probabilities_are_those_of_peft(kind, adapters, oracle, make_llm, prompts):
    llm = make_llm({"one": adapters[kind]})
    prompt = prompts(9)[-1] + [5, 77, 130]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    found = llm.generate(prompt, params, adapter="one")[0].prompt_logprobs
    scores = torch.tensor([entry.logprob for entry in found[1:]])
    torch.testing.assert_close(scores, oracle.logprobs(adapters[kind], prompt), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [7, 512])
@pytest.mark.parametrize("slots", [2, 12])
def test_mixed_batches_with_the_base_model(slots, budget, adapters, oracle, make_llm, prompts):
    llm = make_llm(adapters, slots=slots, scheduler={"max_batch_tokens": budget})
    names = [*adapters, None, None]
    asked = prompts(24)
    chosen = [random.Random(index).choice(names) for index in range(24)]
    expected = [
        oracle.answer(adapters[name] if name else None, prompt, 12)
        for prompt, name in zip(asked, chosen, strict=True)
    ]
    assert tokens(llm.generate(asked, GREEDY, adapter=chosen)) == expected


def test_one_slot_and_preemption(adapters, oracle, make_llm, prompts):
    llm = make_llm(adapters, slots=1, cache={"blocks": 12})
    asked, names = prompts(12), (["plain", "bias", None] * 4)
    expected = [
        oracle.answer(adapters[name] if name else None, prompt, 12)
        for prompt, name in zip(asked, names, strict=True)
    ]
    assert tokens(llm.generate(asked, GREEDY, adapter=names)) == expected


def test_blocks_are_shared_within_an_adapter_only(adapters, oracle, make_llm):
    llm = make_llm({"a": adapters["plain"], "b": adapters["rslora"]})
    prompt = list(range(10, 60))
    for name, path in (("a", adapters["plain"]), ("b", adapters["rslora"]), (None, None)):
        for cached in (0, 48):
            output = llm.generate(prompt, GREEDY, adapter=name)[0]
            assert output.num_cached_tokens == cached
            assert output.outputs[0].token_ids == oracle.answer(path, prompt, 12)


def test_equal_adapters_share_blocks_under_two_names(adapters, make_llm):
    llm = make_llm({"a": adapters["plain"], "b": adapters["plain"]})
    prompt = list(range(10, 60))
    llm.generate(prompt, GREEDY, adapter="a")
    assert llm.generate(prompt, GREEDY, adapter="b")[0].num_cached_tokens == 48


def test_engine_without_lora_has_no_hook(base):
    from octavo import LLM
    from octavo.errors import NotFoundError

    with LLM(str(base), cache={"blocks": 20}) as llm:
        assert llm.adapters() == []
        with pytest.raises(NotFoundError, match="no adapter 'sql'"):
            llm.generate([5], GREEDY, adapter="sql")
        slots = {slot.slot: slot for slot in llm.explain().slots}
        assert (slots["lora"].chosen, slots["lora"].reason) == ("none", "the configuration has no lora section")


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_embedding_and_head_may_be_one_weight(settings, save_adapter, oracle_of, tmp_path):
    """The base model's other layer keeps what they share."""
    base = tiny_llama(tmp_path / "base", max_length=128, vocab=300, tied=True)
    folder = save_adapter(base, tmp_path / "adapter", 3, **{"r": 4, "target_modules": ["q_proj"], **settings})
    expected = oracle_of(base)
    lora = {"use": "torch", "adapters": [{"name": "one", "path": str(folder)}]}
    with LLM(str(base), lora=lora, cache={"blocks": 50}) as llm:
        found = tokens(llm.generate([[5, 6, 7]] * 2, GREEDY, adapter=["one", None]))
    assert found == [expected.answer(folder, [5, 6, 7], 12), expected.answer(None, [5, 6, 7], 12)]


@pytest.mark.parametrize("kind", ["all linear layers", "dora", "head in dora", "saved both"])
def test_adapters_over_int8_weights(kind, adapters, base, make_llm, prompts):
    """DoRA's lengths are those of the stored weights: answers stay near those over the plain ones."""
    asked = prompts(2, seed=4)[0] + [9, 8]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    scores = []
    for sections in ({}, {"quantization": "int8"}):
        found = (
            make_llm({"one": adapters[kind]}, **sections).generate(asked, params, adapter="one")[0].prompt_logprobs
        )
        scores.append(torch.tensor([entry.logprob for entry in found[1:]]))
    plain = make_llm({"one": adapters[kind]}).generate(asked, params)[0].prompt_logprobs
    apart = (scores[0] - torch.tensor([entry.logprob for entry in plain[1:]])).abs().mean()
    assert 0 < (scores[0] - scores[1]).abs().mean() < apart / 5


@pytest.mark.parametrize("kind", ["patterns", "dora", "embedding", "head", "saved both"])
def test_guesses_do_not_change_answers(kind, adapters, oracle, make_llm):
    """Drafted positions use their row's adapter, in the model and in the head."""
    llm = make_llm({"one": adapters[kind]}, speculation="ngram")
    asked = [[7, 8, 9] * 6, [7, 8, 9] * 6, list(range(30, 50)) * 2]
    names = ["one", None, "one"]
    expected = [
        oracle.answer(adapters[kind] if name else None, prompt, 24)
        for prompt, name in zip(asked, names, strict=True)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    assert tokens(llm.generate(asked, params, adapter=names)) == expected
