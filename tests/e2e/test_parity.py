"""Greedy answers of the whole engine: equal to Transformers', and equal to themselves however they are computed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

DATA = Path(__file__).parent.parent / "data"
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("parity"), layers=2, heads=4, kv_heads=2, max_length=256)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    shared = [rng.randrange(3, 320) for _ in range(40)]
    lengths = [1, 2, 15, 16, 17, 33, 64, 90, 5, 7]
    return [[rng.randrange(3, 320) for _ in range(n)] for n in lengths] + [
        shared + [rng.randrange(3, 320) for _ in range(n)] for n in (3, 8, 20)
    ]


@pytest.fixture(scope="module")
def oracle(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        found.append(out[0, len(ids) :].tolist())
    return found


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "one at a time": {"scheduler": {"max_sequences": 1}},
    "three at a time": {"scheduler": {"max_sequences": 3}},
    "chunks of 7": {"scheduler": {"max_batch_tokens": 7}},
    "chunks of 64": {"scheduler": {"max_batch_tokens": 64}},
    "no prefix cache": {"cache": {"prefix_caching": False}},
    "blocks of 4": {"cache": {"block_size": 4}},
    "preemption": {"cache": {"blocks": 14}},
    "preemption in chunks, without a prefix cache": {
        "cache": {"blocks": 14, "prefix_caching": False},
        "scheduler": {"max_batch_tokens": 32},
    },
    "by priority": {"scheduler": {"use": "priority", "max_sequences": 2}},
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_equal_transformers(
    way: str, folder: Path, prompts: list[list[int]], oracle: list[list[int]]
) -> None:
    with LLM(str(folder), **WAYS[way]) as llm:
        assert answers(llm, prompts) == oracle
        assert answers(llm, prompts[::-1]) == oracle[::-1]  # now with whatever the cache holds
        if "preemption" in way:
            assert llm.stats().preemptions > 0
        assert llm.stats().used_blocks == 0


def test_sampled_answers_do_not_depend_on_the_batch(folder: Path, prompts: list[list[int]]) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.9, top_k=40, seed=11, max_tokens=20, ignore_eos=True)
    with LLM(str(folder)) as llm:
        together = answers(llm, prompts, params)
        llm.reset_prefix_cache()
        assert [answers(llm, [prompt], params)[0] for prompt in prompts] == together


def test_prompt_logprobs_equal_transformers(folder: Path, prompts: list[list[int]]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=2, ignore_eos=True)
    with LLM(str(folder), scheduler={"max_batch_tokens": 32}) as llm:
        for ids, output in zip(prompts, llm.generate(prompts, params), strict=True):
            assert output.prompt_logprobs is not None
            assert output.prompt_logprobs[0] is None
            with torch.inference_mode():
                expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            for position, found in enumerate(output.prompt_logprobs[1:]):
                assert found is not None
                assert found.token_id == ids[position + 1]
                assert found.logprob == pytest.approx(expected[position, ids[position + 1]].item(), abs=1e-4)
                assert found.top[0].token_id == expected[position].argmax().item()


@pytest.fixture(scope="module")
def smollm2() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((DATA / "smollm2_greedy.json").read_text())
    assert len(entries) == 50
    return entries


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_equals_transformers(smollm2: list[dict[str, Any]]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, logprobs=1)
    with LLM("bundled:smollm2-135m-instruct") as llm:
        outputs = llm.generate([entry["prompt"] for entry in smollm2], params)
    for entry, output in zip(smollm2, outputs, strict=True):
        assert output.outputs[0].token_ids == entry["answer"]
        found = [score.logprob for score in output.outputs[0].logprobs or ()]
        assert found == pytest.approx(entry["logprobs"], abs=1e-4)
