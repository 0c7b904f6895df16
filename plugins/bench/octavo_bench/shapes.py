"""Model shapes to measure without a checkpoint: a config.json, random weights, no tokenizer."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_LLAMA: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "dtype": "bfloat16",
}
_FP8: Final = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]}


@dataclass(frozen=True, slots=True)
class Shape:
    """``config`` is the model's; ``sections`` are of the launch configuration, for this model on one GPU."""

    config: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


SHAPES: Final[Mapping[str, Shape]] = {
    "8b": Shape(
        {
            **_LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 8192,
        },
    ),
    "70b": Shape(
        {
            **_LLAMA,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "max_position_embeddings": 4096,
            "quantization_config": _FP8,
        },
        {"cache": {"memory": 0.95, "dtype": "fp8_e4m3"}},
    ),
    "0.6b": Shape(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 4096,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "dtype": "bfloat16",
        },
    ),
}


@contextlib.contextmanager
def written(name: str) -> Iterator[dict[str, Any]]:
    """The launch sections for a shape, whose config.json lies in a folder that goes when the context ends."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory(prefix="octavo-shape-") as folder:
        path = Path(folder) / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(shape.config, indent=2), encoding="utf-8")
        model = {"path": str(path), "loader": "dummy", "max_length": shape.config["max_position_embeddings"]}
        yield {"model": model, **shape.sections}
