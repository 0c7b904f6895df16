"""The Llama architecture against Transformers, on random configurations; and divided over ranks, against itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.errors import CheckpointError
from octavo.testing.tiny import tiny_llama

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}


def random_shape(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    kv_heads = rng.choice([1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 4])
    head_dim = rng.choice([8, 16, 32])
    return {
        "seed": seed,
        "hidden": rng.choice([48, 96]),
        "layers": rng.choice([1, 2, 3]),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": rng.choice([40, 64, 136]),
        "vocab": rng.choice([259, 320, 401]),
        "tied": rng.random() < 0.5,
        "bias": rng.random() < 0.5,
        "rope": rng.choice([None, LLAMA3, LINEAR]),
    }


@pytest.mark.parametrize("seed", range(20))
def test_logits_equal_transformers(seed: int, tmp_path: Path, load_model: Any, model_logits: Any) -> None:
    from transformers import LlamaForCausalLM

    shape = random_shape(seed)
    folder = tiny_llama(tmp_path, **shape)
    oracle = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_model(folder)
    rng = random.Random(seed)
    for length in (1, 2, 17, 130):
        ids = [rng.randrange(shape["vocab"]) for _ in range(length)]
        with torch.inference_mode():
            expected = oracle(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(model_logits(model, ids), expected, atol=1e-3, rtol=1e-4)


def run_ranks(folder: Path, size: int, ids: list[int], rendezvous: Path) -> list[torch.Tensor]:
    worker = str(Path(__file__).with_name("rank_worker.py"))
    started = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(size), str(folder), str(rendezvous), json.dumps(ids)],
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * size
    return [torch.tensor(json.loads(output)) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_two_ranks_equal_one(kv_heads: int, tmp_path: Path, load_model: Any, model_logits: Any) -> None:
    folder = tiny_llama(tmp_path / "model", heads=4, kv_heads=kv_heads, vocab=321, tied=False, bias=True, layers=2)
    ids = [random.Random(1).randrange(321) for _ in range(40)]
    alone = model_logits(load_model(folder), ids)
    for answer in run_ranks(folder, 2, ids, tmp_path / "rendezvous"):
        torch.testing.assert_close(answer, alone, atol=2e-4, rtol=1e-4)


def test_unknown_rope_type_is_named(tmp_path: Path, load_model: Any) -> None:
    folder = tiny_llama(tmp_path, rope={"rope_type": "spiral"})
    with pytest.raises(CheckpointError, match="spiral"):
        load_model(folder)
