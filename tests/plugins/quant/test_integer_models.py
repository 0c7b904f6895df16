"""Whole checkpoints of integer weights against Transformers' float32 model of the dequantised weights."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError
from octavo.loading.profile import read_profile
from octavo.testing.tiny import tiny_llama
from octavo_quant.integer.config import read_settings
from octavo_quant.integer.online import Int4Linear, Int4Scheme, quantise
from octavo_quant.integer.scheme import IntegerScheme
from octavo_quant.stored import Stored

HERE = Path(__file__).parent
KIT = runpy.run_path(str(HERE.parents[1] / "core/model/conftest.py"))
IDS = [1, 70, 80, 90, 100, 7, 200, 31]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec
    assert spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


writers = _load("integer_writers")


def write(folder: Path, config: dict[str, Any], write_layer: Any, **how: Any) -> tuple[Path, Path]:
    """A quantised checkpoint, and a plain one of its dequantised weights."""
    plain = tiny_llama(folder / "plain", hidden=64, intermediate=128, tied=False, layers=1)
    weights = load_file(plain / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    head = config.get("lm_head", False)
    for name, weight in list(weights.items()):
        if name.endswith("_proj.weight") or (head and name == "lm_head.weight"):
            layer = writers.quantise(weight, config["bits"], config["group_size"], **how)
            module = name.removesuffix(".weight")
            stored |= {f"{module}.{key}": value for key, value in write_layer(layer).items()}
            weights[name] = layer.weight.float()
        else:
            stored[name] = weight
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    quantised = tiny_llama(folder / "quantised", hidden=64, intermediate=128, tied=False, layers=1)
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
    return quantised, plain


def transformers_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


def octavo_logits(folder: Path) -> torch.Tensor:
    profile = read_profile(str(folder))
    model = KIT["load"](folder, scheme=IntegerScheme(Stored(profile), read_settings(profile)))
    return KIT["logits"](model, IDS)


@pytest.mark.parametrize("form", ["gptq", "gptq-head", "gptq-v2-act-order", "awq", "auto-round"])
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, form: str) -> None:
    method = "gptq" if form.startswith("gptq") else form
    config: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": 32}
    how: dict[str, Any] = {}
    write_layer = writers.gptq
    if form == "gptq-head":
        config |= {"lm_head": True, "bits": 8}
    elif form == "gptq-v2-act-order":
        config |= {"checkpoint_format": "gptq_v2", "desc_act": True, "bits": 3}
        how["act_order"] = True
        write_layer = lambda layer: writers.gptq(layer, version=2)  # noqa: E731
    elif form == "awq":
        write_layer = writers.awq
    elif form == "auto-round":
        config |= {"packing_format": "auto_round:auto_gptq"}
        write_layer = lambda layer: writers.gptq(layer, with_order=False)  # noqa: E731
    quantised, plain = write(tmp_path, config, write_layer, **how)
    torch.testing.assert_close(octavo_logits(quantised), transformers_logits(plain), rtol=1e-4, atol=2e-4)


def test_an_engine_recognises_the_checkpoint(tmp_path: Path) -> None:
    quantised, plain = write(tmp_path, {"quant_method": "gptq", "bits": 4, "group_size": 32}, writers.gptq)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    answers = []
    for folder in (quantised, plain):
        with LLM(str(folder), cache={"blocks": 64}) as llm:
            answers.append(llm.generate([IDS], params)[0].outputs[0].token_ids)
            if folder == quantised:
                slot = next(slot for slot in llm.explain().slots if slot.slot == "quantization")
                assert slot.chosen == "gptq"
    assert answers[0] == answers[1]


def test_a_missing_tensor_is_named_before_loading(tmp_path: Path) -> None:
    quantised, _ = write(tmp_path, {"quant_method": "gptq", "bits": 4, "group_size": 32}, writers.gptq)
    stored = load_file(quantised / "model.safetensors")
    stored.pop("model.layers.0.mlp.up_proj.scales")
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.scales is missing"):
        octavo_logits(quantised)


def test_int4_made_while_loading(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", hidden=64, intermediate=128, tied=True)
    scheme = Int4Scheme(Int4Linear(128), lambda module: module == "lm_head")
    found = KIT["logits"](KIT["load"](folder, scheme=scheme), IDS)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            group = 128 if weight.shape[1] % 128 == 0 else 64
            codes, scales, zeros = (t.double() for t in quantise(weight, group))
            index = torch.arange(weight.shape[1]) // group
            weights[name] = ((codes - zeros[:, index]) * scales[:, index]).float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(found, transformers_logits(folder), rtol=1e-4, atol=2e-4)


def test_int4_is_close_and_beats_plain_rounding() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 256)
    weight[:, 7] *= 6
    codes, scales, zeros = quantise(weight, 128)
    assert int(codes.max()) <= 15
    assert int(zeros.max()) <= 15
    index = torch.arange(256) // 128
    error = ((codes.float() - zeros.float()[:, index]) * scales.float()[:, index] - weight).norm()
    plain = writers.quantise(weight, 4, 128)
    assert error < 0.97 * (plain.weight.float() - weight).norm()
    flat = quantise(torch.zeros(2, 64), 64)
    assert ((flat[0].float() - flat[2].float()) * flat[1].float() == 0).all()
    assert torch.isfinite(quantise(torch.full((2, 64), 1e-9), 64)[1]).all()
