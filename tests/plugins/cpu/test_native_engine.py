"""Whole engines on the native kernels: chosen by themselves, and answering as plain torch does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

DATA = Path(__file__).parent.parent.parent / "data"
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("native-engine"), layers=2, heads=4, kv_heads=2, max_length=256)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, 320) for _ in range(n)] for n in (1, 2, 17, 64, 90, 33)]


def answers(folder: Path, prompts: list[list[int]], **sections: Any) -> tuple[list[list[int]], dict[str, str]]:
    with LLM(str(folder), **sections) as llm:
        found = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]
        return found, {slot.slot: slot.chosen for slot in llm.explain().slots}


def test_float32(
    built: None, folder: Path, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        plain, slots = answers(folder, prompts)
    assert slots["attention"] == "torch"
    for sections in ({}, {"scheduler": {"max_batch_tokens": 7}}, {"scheduler": {"max_sequences": 1}}):
        native, slots = answers(folder, prompts, **sections)
        assert slots["attention"] == "native-cpu"
        assert slots["ops.linear_method"] == "native-linear"
        assert native == plain


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantised_answers_do_not_depend_on_the_batch(
    scheme: str, built: None, folder: Path, prompts: list[list[int]]
) -> None:
    together, _ = answers(folder, prompts, quantization=scheme)
    alone, _ = answers(folder, prompts, quantization=scheme, scheduler={"max_sequences": 1})
    assert together == alone


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_equals_transformers(built: None) -> None:
    entries = json.loads((DATA / "smollm2_greedy.json").read_text())[:25]
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, logprobs=1)
    with LLM("bundled:smollm2-135m-instruct") as llm:
        outputs = llm.generate([entry["prompt"] for entry in entries], params)
    for entry, output in zip(entries, outputs, strict=True):
        assert output.outputs[0].token_ids == entry["answer"]
        found = [score.logprob for score in output.outputs[0].logprobs or ()]
        assert found == pytest.approx(entry["logprobs"], abs=1e-4)


def test_not_built(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.errors import PluginError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LLM(str(folder)) as llm:
        (slot,) = [slot for slot in llm.explain().slots if slot.slot == "attention"]
    assert slot.chosen == "torch"
    with pytest.raises(PluginError, match=r"native-cpu.*(octavo native build|compiler|written for|CPU lacks)"):
        LLM(str(folder), attention="native-cpu")
