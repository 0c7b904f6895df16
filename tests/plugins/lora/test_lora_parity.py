"""Answers with adapters equal PEFT's, whatever else is in the batch and however many slots there are."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from octavo import SamplingParams

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
