"""Adapters on a GPU, with captured steps and few slots, against Transformers with the adapters merged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
SHAPES = {"self_attn.q_proj": (256, 256), "self_attn.v_proj": (128, 256), "mlp.down_proj": (256, 512)}
MODULES = {f"model.layers.{layer}.{name}": shape for layer in range(3) for name, shape in SHAPES.items()}
RANKS = {"low": 3, "high": 40, "dora": 16, "head": 8, "whole": 4}


def tensors_of(kind: str) -> dict[str, Any]:
    """By module and role, float32."""
    import torch

    generator, rank = torch.Generator().manual_seed(len(kind) + RANKS[kind]), RANKS[kind]
    modules = {**MODULES, "lm_head": (320, 256)} if kind == "head" else MODULES
    found = {}
    for module, (outputs, inputs) in modules.items():
        found[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        found[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.5 * rank**-0.5
        if kind == "dora":
            found[f"{module}.lora_magnitude_vector"] = 0.5 + torch.rand(outputs, generator=generator) * 2
    if kind == "whole":
        found["lm_head.weight"] = torch.randn(320, 256, generator=generator) * 0.1
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("lora-gpu")
    base = tiny_llama(
        root / "base", hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512, layers=3, tied=False
    )
    adapters = {}
    for kind, rank in RANKS.items():
        adapters[kind] = root / kind
        adapters[kind].mkdir()
        tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors_of(kind).items()}
        save_file(tensors, adapters[kind] / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "use_dora": kind == "dora"}
        (adapters[kind] / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapters


def answers(base: Path, kind: str | None, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tensors = tensors_of(kind) if kind else {}
    with torch.no_grad():
        if "lm_head.weight" in tensors:
            model.lm_head.weight.copy_(tensors["lm_head.weight"])
        for name in [name for name in tensors if name.endswith("lora_A.weight")]:
            module = name.removesuffix(".lora_A.weight")
            weight = model.get_submodule(module).weight
            changed = weight.double() + tensors[f"{module}.lora_B.weight"].double() @ tensors[name].double()
            if kind == "dora":
                magnitude = tensors[f"{module}.lora_magnitude_vector"].double() / changed.norm(dim=1)
                changed *= magnitude[:, None]
            weight.copy_(changed)
    model, found = model.cuda(), []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]).cuda(), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        found.append(out[0, len(ids) :].tolist())
    return found


def test_mixed_adapters_over_few_slots_equal_merged_weights(folders: tuple[Path, dict[str, Path]]) -> None:
    rng, (base, adapters) = random.Random(8), folders
    prompts = [[rng.randrange(3, 320) for _ in range(length)] for length in (1, 17, 40, 150)]
    expected = {kind: answers(base, kind, prompts) for kind in (*adapters, None)}
    asked = [(kind, at) for kind in (*adapters, None) for at in range(len(prompts))]
    rng.shuffle(asked)
    lora = {
        "use": "triton",
        "options": {"max_loaded": 3, "max_rank": 40},
        "adapters": [{"name": kind, "path": str(path)} for kind, path in adapters.items()],
    }
    limits = {"max_sequences": 16, "max_batch_tokens": 96}
    with LLM(model={"path": str(base), "dtype": "float32"}, lora=lora, scheduler=limits) as llm:
        for only in ((*adapters, None), ("low", "high", "dora", None), (None,)):  # the last two are all replayed
            some = [(kind, at) for kind, at in asked if kind in only]
            outputs = llm.generate([prompts[at] for _, at in some], GREEDY, adapter=[kind for kind, _ in some])
            assert [output.outputs[0].token_ids for output in outputs] == [expected[kind][at] for kind, at in some]
