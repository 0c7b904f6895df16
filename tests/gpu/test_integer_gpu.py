"""Integer weights in a whole engine on a GPU: packed weights against the dequantised ones, in float32."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu
TESTS = Path(__file__).parents[1]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
PROMPTS = [[5, 70, 9, 100], [7] * 40, list(range(10, 150))]


def _writers() -> Any:
    path = TESTS / "plugins/quant/integer_writers.py"
    spec = importlib.util.spec_from_file_location("integer_writers", path)
    assert spec
    assert spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(path: Path, dtype: str = "float32", **sections: Any) -> tuple[list[list[int]], str]:
    model = {"path": str(path), "dtype": dtype, "device": "cuda"}
    with LLM(model=model, scheduler={"max_sequences": 8}, **sections) as llm:
        slot = next(slot for slot in llm.explain().slots if slot.slot == "quantization")
        return [list(out.outputs[0].token_ids) for out in llm.generate(PROMPTS, GREEDY)], slot.chosen


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(tmp_path: Path, act_order: bool) -> None:
    writers = _writers()
    shape = {"hidden": 256, "intermediate": 512, "heads": 4, "kv_heads": 2, "head_dim": 64, "tied": False}
    plain, quantised = tiny_llama(tmp_path / "plain", **shape), tiny_llama(tmp_path / "quantised", **shape)
    weights = load_file(plain / "model.safetensors")
    stored = {}
    for name, weight in list(weights.items()):
        stored[name] = weight
        if name.endswith("_proj.weight"):
            layer = writers.quantise(weight, 4, 128, act_order=act_order)
            module = name.removesuffix(".weight")
            stored |= {f"{module}.{key}": tensor for key, tensor in writers.gptq(layer).items()}
            weights[name] = layer.weight.float()
            del stored[name]
    save_file(weights, plain / "model.safetensors")
    save_file(stored, quantised / "model.safetensors")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": act_order}
    (quantised / "config.json").write_text(json.dumps(config))
    found, scheme = answers(quantised)
    assert scheme == "gptq"
    assert found == answers(plain)[0]
    half, _ = answers(quantised, "bfloat16")
    assert sum(a[0] == b[0] for a, b in zip(half, found, strict=True)) >= 2


def test_gguf_stays_quantised() -> None:
    path = TESTS / "data/tiny-llama-Q4_K_M.gguf"
    found, scheme = answers(path)
    assert scheme == "gguf"
    plain, scheme = answers(path, quantization="none")
    assert scheme != "gguf"
    assert sum(a[:4] == b[:4] for a, b in zip(found, plain, strict=True)) >= 2  # scales are rounded to 16 bits


def test_int4_made_while_loading(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, hidden=256, intermediate=512, heads=4, kv_heads=4, head_dim=64)
    found, scheme = answers(folder, "bfloat16", quantization="int4")
    assert scheme == "int4"
    assert all(len(tokens) == 24 for tokens in found)
