"""Engines without a model: the real loop, scheduler and block pool on a simulated device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.testing.tiny import tiny_tokenizer

VOCAB = 320


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model folder without weights: config.json and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("simulated") / "model"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(folder, vocab=VOCAB)
    return folder


@pytest.fixture
def simulated(model):
    """Keyword arguments for ``LLM`` and ``AsyncEngine``; options of the executor as keywords."""

    def arguments(max_queue=4096, max_sequences=64, blocks=256, **options):
        return {
            "model": {"path": str(model), "loader": "dummy"},
            "plugins": [],
            "config": {"plugins": {"load": [str(Path(__file__).with_name("simulated_plugin.py"))]}, "api": []},
            "executor": {"use": "scripted", "options": options},
            "scheduler": {"max_queue": max_queue, "max_sequences": max_sequences},
            "cache": {"blocks": blocks},
        }

    return arguments
