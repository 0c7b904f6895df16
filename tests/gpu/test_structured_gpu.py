"""Structured outputs on a GPU: masks with graphs, overlap and drafts, made while the device computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.testing.schemas import random_schema
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu
pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("gpu"), hidden=256, heads=4, kv_heads=2, head_dim=64, layers=2)


def held(seed: int) -> SamplingParams:
    form = StructuredOutputs(json=random_schema(seed), disable_any_whitespace=True)
    return SamplingParams(max_tokens=250, temperature=5.0, seed=seed, structured_outputs=form)


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "torch operations": {"ops": {"prefer": ["reference"]}},
    "preemption": {"cache": {"blocks": 60}},
    "guesses": {"speculation": "ngram"},
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_valid_and_neighbours_what_they_are_alone(way: str, folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    plain = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    sections = {"scheduler": {"max_sequences": 16}, **WAYS[way]}
    with LLM(model={"path": str(folder), "dtype": "float32"}, **sections) as llm:
        alone = llm.generate("Say", plain)[0].outputs[0].token_ids
        params = [held(seed) if seed % 3 else plain for seed in range(48)]
        outputs = llm.generate(["Say"] * len(params), params)
    finished = 0
    for seed, output in enumerate(outputs):
        answer = output.outputs[0]
        if seed % 3 == 0:
            assert answer.token_ids == alone
        elif answer.finish_reason == "stop":
            finished += 1
            jsonschema.validate(json.loads(answer.text), random_schema(seed))
    assert finished > 20


def test_launching_and_sampling_do_not_wait_for_the_device(folder: Path) -> None:
    import torch

    with LLM(model={"path": str(folder), "dtype": "bfloat16"}, scheduler={"max_sequences": 16}) as llm:
        params = [held(seed) for seed in range(8)]
        llm.generate(["Say"] * 8, params)
        runner = llm._core._executor._runner
        launch, sampled = runner.launch, []

        def strict(function: Any) -> Any:
            def call(*arguments: Any) -> Any:
                torch.cuda.set_sync_debug_mode("error")
                try:
                    return function(*arguments)
                finally:
                    torch.cuda.set_sync_debug_mode("default")

            return call

        def watched(plan: Any) -> Any:
            pending = strict(launch)(plan)
            pending.sample, sample = strict(pending.sample), pending.sample
            sampled.append(sample)
            return pending

        runner.launch = watched
        llm.generate(["Say"] * 8, params)
        assert len(sampled) > 20
