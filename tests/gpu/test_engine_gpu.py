"""The whole engine on a GPU: graphs, overlap and Triton kernels against Transformers on the same GPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("gpu"), hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512, layers=3
    )


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(3, 320) for _ in range(n)] for n in (1, 2, 15, 16, 17, 33, 64, 200, 5, 7, 130)]


@pytest.fixture(scope="module")
def oracle(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda().eval()
    found = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]).cuda(), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        found.append(out[0, len(ids) :].tolist())
    return found


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "torch attention": {"attention": {"use": "torch"}},
    "torch operations": {"ops": {"prefer": ["reference"]}},
    "chunks of 48": {"scheduler": {"max_batch_tokens": 48}},
    "preemption": {"cache": {"blocks": 40}},
    "no prefix cache": {"cache": {"prefix_caching": False}},
}


@pytest.mark.parametrize("way", WAYS)
def test_float32_answers_equal_transformers(
    way: str, folder: Path, prompts: list[list[int]], oracle: list[list[int]]
) -> None:
    sections = {"scheduler": {"max_sequences": 16}, **WAYS[way]}
    with LLM(model={"path": str(folder), "dtype": "float32"}, **sections) as llm:
        for wanted, asked in ((oracle, prompts), (oracle[::-1], prompts[::-1])):
            assert [output.outputs[0].token_ids for output in llm.generate(asked, GREEDY)] == wanted
        if way == "preemption":
            assert llm.stats().preemptions > 0
        assert llm.stats().used_blocks == 0


def test_a_decode_step_does_not_wait_for_the_device(folder: Path, prompts: list[list[int]]) -> None:
    import torch

    with LLM(model={"path": str(folder), "dtype": "bfloat16"}, scheduler={"max_sequences": 16}) as llm:
        llm.generate(prompts, GREEDY)
        runner = llm._core._executor._runner
        launch, launches = runner.launch, []

        def strict(plan: Any) -> Any:
            launches.append(len(plan.rows))
            torch.cuda.set_sync_debug_mode("error")
            try:
                return launch(plan)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        runner.launch = strict
        llm.generate(prompts, GREEDY)
        assert len(launches) >= 40
