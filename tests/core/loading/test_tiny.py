"""The tiny checkpoints of the testing kit, as transformers sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from octavo.testing.tiny import CHAT_TEMPLATE, tiny_llama

SHAPES: list[dict[str, Any]] = [
    {},
    {"tied": False, "bias": True, "heads": 6, "kv_heads": 1, "hidden": 48, "layers": 3},
    {"hidden": 32, "head_dim": 16, "heads": 2, "kv_heads": 2, "intermediate": 80, "vocab": 259},
    {"shards": 3, "dtype": "bfloat16", "vocab": 1000, "rope": {"rope_type": "linear", "factor": 2.0}},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_takes_every_weight(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = tiny_llama(tmp_path / "m", **shape)
    model, info = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    stored = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    state = model.state_dict()
    assert set(state) - set(stored) <= {"lm_head.weight"}
    for name, weight in stored.items():
        assert torch.equal(state[name].float(), weight.float()), name
    assert len(list(folder.glob("*.safetensors"))) == shape.get("shards", 1)


def test_greedy_answers_wander(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama(tmp_path / "m"))
    answers = set()
    for prompt in ([1, 5, 9], [1, 80, 81, 82], [1, 200]):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=None
        )
        new = out[0, len(prompt) :].tolist()
        assert len(set(new)) >= 10
        answers.add(tuple(new))
    assert len(answers) == 3


def test_seeds_decide_the_weights(tmp_path: Path) -> None:
    files = [
        tiny_llama(tmp_path / name, seed=seed) / "model.safetensors"
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    one, same, other = (load_file(path)["model.norm.weight"] for path in files)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("vocab", [259, 320, 1500])
def test_every_id_is_a_token(tmp_path: Path, vocab: int) -> None:
    folder = tiny_llama(tmp_path / "m", vocab=vocab)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == vocab
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    text = "<|im_start|>user\nThe weather, naïve 漢字 🦊  42<|im_end|>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids[0] == 1
    assert ids[-1] == 2
    assert (len(ids) < len(text.encode()) - 20) is (vocab > 259)


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 259"):
        tiny_llama(tmp_path / "m", vocab=258)


def test_the_index_names_every_tensor(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in folder.glob("*.safetensors"):
        assert set(load_file(path)) == {name for name, file in index["weight_map"].items() if file == path.name}
