"""A thousand adapters over one model, eight of them on the device and few in host memory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

COUNT, SLOTS, HELD = 1000, 8, 40
LENGTH = 6
MODULES = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.1.mlp.down_proj": (32, 48)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a folder of adapters 0 to 999; each has its own weights, rank and scale."""
    root = tmp_path_factory.mktemp("thousand")
    base = tiny_llama(
        root / "base", hidden=32, intermediate=48, heads=2, kv_heads=1, vocab=270, max_length=64, tied=False
    )
    for index in range(COUNT):
        folder = root / "adapters" / f"a{index}"
        folder.mkdir(parents=True)
        save_file(_tensors(index), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(_settings(index)))
    return base, root / "adapters"


def _settings(index: int) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 1 + index % 8, "lora_alpha": 4 + index % 5}


def _tensors(index: int) -> dict[str, torch.Tensor]:
    generator, rank = torch.Generator().manual_seed(index), 1 + index % 8
    found = {}
    for module, (outputs, inputs) in MODULES.items():
        found[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        found[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.3
    return found


class Merged:
    """The base model with one adapter's product added to its weights at a time."""

    def __init__(self, base: Path) -> None:
        self._model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self._plain = {name: self._model.get_submodule(name).weight.detach().clone() for name in MODULES}

    @torch.no_grad()
    def greedy(self, index: int | None, prompt: list[int], answer: list[int]) -> bool:
        """Whether each token of the answer is the likeliest one."""
        for name, weight in self._plain.items():
            change = torch.zeros_like(weight)
            if index is not None:
                settings, tensors = _settings(index), _tensors(index)
                low, high = (tensors[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
                change = settings["lora_alpha"] / settings["r"] * (high @ low)
            self._model.get_submodule(name).weight.copy_(weight + change)
        logits = self._model(input_ids=torch.tensor([prompt + answer])).logits[0]
        return bool(logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer)


@pytest.fixture
def thousand(folders: tuple[Path, Path]) -> Iterator[LLM]:
    base, adapters = folders
    size = 8 * (32 + 32 + 32 + 48) * 4  # bytes of an adapter of rank 8, the largest
    lora = {
        "use": "torch",
        "options": {"max_loaded": SLOTS, "max_rank": 8, "extra_mib": 0},
        "host_memory_gib": HELD * size / 2**30,
        "adapters": [{"name": f"a{index}", "path": str(adapters / f"a{index}")} for index in range(COUNT)],
    }
    with LLM(str(base), lora=lora, cache={"blocks": 400}, scheduler={"max_sequences": 24}) as llm:
        yield llm


@pytest.mark.slow
def test_random_traffic_over_a_thousand_adapters(thousand: LLM, folders: tuple[Path, Path]) -> None:
    rng, oracle = random.Random(5), Merged(folders[0])
    params = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    core = thousand._core
    memory, executor = core._adapters.memory, core._executor
    used = set()
    for _ in range(4):
        chosen = [rng.choice([None, *range(COUNT)]) for _ in range(70)]
        chosen += rng.choices(chosen, k=20)
        prompts = [[rng.randrange(3, 270) for _ in range(rng.choice([2, 9, 20]))] for _ in chosen]
        names = [None if index is None else f"a{index}" for index in chosen]
        outputs = thousand.generate(prompts, params, adapter=names)
        for index, prompt, output in zip(chosen, prompts, outputs, strict=True):
            assert oracle.greedy(index, prompt, output.outputs[0].token_ids), index
        used |= set(chosen)
        core._scheduler.check()
        assert memory.nbytes <= memory.limit
        assert HELD <= len(executor._adapters) < 8 * HELD
    assert len(used) > 200  # most of them were read again
    for index in range(COUNT):
        thousand.unload_adapter(f"a{index}")
    core._scheduler.check()
    slots = core._scheduler._ledger.adapters
    assert (len(slots), len(executor._adapters), memory.nbytes, len(memory.stored)) == (0, 0, 0, 0)
    assert (len(slots.absent), len(slots.wanted), thousand.stats().used_blocks) == (0, 0, 0)
