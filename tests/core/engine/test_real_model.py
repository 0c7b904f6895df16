"""The whole way with a real, tiny model: text in, text out, the same in all three arrangements."""

from __future__ import annotations

import asyncio

import pytest

from octavo import LLM, AsyncEngine, SamplingParams
from octavo.testing.tiny import tiny_llama

PROMPTS = ["Hello", "once upon a time, ", "é😀 " * 10, [5, 6, 7] * 20]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "model", max_length=256))


@pytest.fixture(scope="module")
def outputs(folder):
    with LLM(folder, cache={"blocks": 128}) as llm:
        return llm.generate(PROMPTS, GREEDY)


def test_answers_are_the_models(folder, outputs):
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    for output in outputs:
        ids = torch.tensor([output.prompt_token_ids])
        expected = model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
        assert output.outputs[0].token_ids == expected[0, ids.shape[1] :].tolist()
        logits = model(expected).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        for entry, row in zip(output.outputs[0].logprobs, logits, strict=True):
            assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
            assert entry.rank == 1
            assert [top.token_id for top in entry.top] == row.topk(2).indices.tolist()


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "process"])
def test_served_answers_are_equal(folder, outputs, inline):
    async def answer(engine, prompt):
        return [delta async for delta in engine.generate(prompt, GREEDY)]

    async def main():
        async with AsyncEngine(folder, cache={"blocks": 128}, inline=inline) as engine:
            return await asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS))

    for deltas, output in zip(asyncio.run(main()), outputs, strict=True):
        assert [token for delta in deltas for token in delta.token_ids] == output.outputs[0].token_ids
        assert "".join(delta.text for delta in deltas) == output.outputs[0].text
        found = [entry.logprob for delta in deltas for entry in delta.logprobs]
        assert found == pytest.approx([entry.logprob for entry in output.outputs[0].logprobs], abs=1e-4)
        assert deltas[0].prompt.token_ids == output.prompt_token_ids
