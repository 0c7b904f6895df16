"""Speculation on a GPU: guesses and their verification as CUDA graphs change no answer."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A target, and a noisy copy of it that is often right."""
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path_factory.mktemp("speculation")
    target = tiny_llama(
        base / "target", hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512, layers=3, max_length=400
    )
    noisy = base / "noisy"
    shutil.copytree(target, noisy)
    weights, generator = load_file(noisy / "model.safetensors"), torch.Generator().manual_seed(4)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, noisy / "model.safetensors")
    return {"target": str(target), "noisy": str(noisy)}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    found = [[rng.randrange(3, 320) for _ in range(n)] for n in (1, 2, 15, 16, 17, 33, 64, 200, 5, 7, 130)]
    return [*found, [7, 8, 9, 10] * 20, [5, 6] * 9]


def params(count: int, temperature: float) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=40, ignore_eos=True, detokenize=False)
        for seed in range(count)
    ]


def run(folder: str, prompts: list[list[int]], temperature: float, **sections: Any) -> tuple[Any, Any]:
    with LLM(folder, **sections) as llm:
        outputs = llm.generate(prompts, params(len(prompts), temperature))
        return [output.outputs[0].token_ids for output in outputs], llm.stats()


@pytest.fixture(scope="module")
def plain(folders: dict[str, str], prompts: list[list[int]]) -> dict[float, Any]:
    limits = {"scheduler": {"max_sequences": 16}}
    return {heat: run(folders["target"], prompts, heat, **limits)[0] for heat in (0.0, 0.8)}


WAYS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "torch attention": {"attention": {"use": "torch"}},
    "chunks of 48": {"scheduler": {"max_batch_tokens": 48}},
    "preemption": {"cache": {"blocks": 40}},
}


@pytest.mark.parametrize("heat", [0.0, 0.8])
@pytest.mark.parametrize("way", WAYS)
def test_a_draft_model_changes_nothing(way, heat, folders, prompts, plain) -> None:
    sections = {"scheduler": {"max_sequences": 16}, **WAYS[way]}
    speculation = {"use": "draft-model", "options": {"model": folders["noisy"], "tokens": 5}, "adapt": False}
    answers, stats = run(folders["target"], prompts, heat, speculation=speculation, **sections)
    assert stats.speculation_off == ""
    assert 50 < stats.accepted < stats.drafted
    assert answers == plain[heat]


def test_a_draft_equal_to_its_target_is_right(folders, prompts) -> None:
    speculation = {"use": "draft-model", "options": {"model": folders["target"], "tokens": 5}, "adapt": False}
    limits = {"scheduler": {"max_sequences": 16}}
    for heat in (0.0, 0.8):
        _, stats = run(folders["target"], prompts, heat, speculation=speculation, **limits)
        assert stats.accepted > 0.95 * stats.drafted, stats


@pytest.mark.parametrize("use", ["ngram", "suffix"])
def test_look_up_changes_nothing(use, folders, prompts, plain) -> None:
    limits = {"scheduler": {"max_sequences": 16}}
    answers, stats = run(folders["target"], prompts, 0.0, speculation=use, **limits)
    assert stats.drafts > 0
    assert answers == plain[0.0]


def test_an_eagle_head_changes_nothing(folders, prompts, plain, tmp_path) -> None:
    import json

    import torch
    from safetensors.torch import save_file

    hidden, inner, generator = 256, 512, torch.Generator().manual_seed(1)
    shapes = {
        "fc": (hidden, 2 * hidden), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    weights = {
        f"{'' if name == 'fc' else 'layers.0.'}{name}.weight": torch.randn(shape, generator=generator) / 20
        for name, shape in shapes.items()
    }
    weights["layers.0.post_attention_layernorm.weight"] = torch.ones(hidden)
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((Path(folders["target"]) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    speculation = {"use": "eagle", "options": {"model": str(tmp_path), "tokens": 3}, "adapt": False}
    answers, stats = run(folders["target"], prompts, 0.0, speculation=speculation, scheduler={"max_sequences": 16})
    assert stats.speculation_off == ""
    assert stats.drafts > 0
    assert answers == plain[0.0]
