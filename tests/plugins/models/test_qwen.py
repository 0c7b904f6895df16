"""Qwen 2 and Qwen 3 against Transformers, through the whole engine."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("name", "more"), [("Qwen2", {}), ("Qwen3", {"head_dim": 32}), ("Qwen3", {"tie_word_embeddings": True})]
)
def test_greedy_answers_equal_transformers(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE, **more)
    oracle = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else torch.nn.init.uniform_(
            parameter, 0.5, 1.5
        )
    oracle.save_pretrained(tmp_path)
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 300) for _ in range(n)] for n in (1, 20, 45)]
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    with LLM(str(tmp_path)) as llm:
        found = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    for ids, answer in zip(prompts, found, strict=True):
        out = oracle.generate(
            torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert answer == out[0, len(ids) :].tolist()
