"""A tiny model, adapters that PEFT itself has made for it, and PEFT's own answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaForCausalLM

from octavo import LLM
from octavo.testing.tiny import tiny_llama

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all linear layers": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.\w+": 6},
        "alpha_pattern": {"v_proj": 32, "model.layers.0.self_attn.q_proj": 2},
    },
    "patterns of rslora": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "use_rslora": True,
        "rank_pattern": {"o_proj": 1, "down_proj": 9},
        "alpha_pattern": {"down_proj": 3},
    },
    "modules by regex": {"r": 3, "lora_alpha": 9, "target_modules": r".*layers\.1\.(self_attn|mlp)\.(k|up)_proj"},
    "one layer only": {"r": 5, "lora_alpha": 10, "target_modules": ALL, "layers_to_transform": [1]},
    "bias": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "lora_bias": True},
    "fan in fan out": {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj"], "fan_in_fan_out": True},
    "modules left out": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "exclude_modules": r".*\.0\..*",
        "layers_pattern": "layers",
        "layers_to_transform": [0, 1],
    },
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_dora": True},
    "dora of rslora and patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["v_proj", "gate_proj", "down_proj"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 9},
    },
    "embedding": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]},
    "embedding in dora": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "v_proj"], "use_dora": True},
    "head": {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "up_proj"]},
    "head with bias": {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head"], "lora_bias": True},
    "head in dora": {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "q_proj"], "use_dora": True},
    "saved head": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved both": {"r": 4, "target_modules": ["down_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("lora") / "base", max_length=128, vocab=300, tied=False)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """One after the other."""
    name: str = request.param
    return name


def make_adapter(base: Path, folder: Path, seed: int, dtype: torch.dtype | None = None, **settings: Any) -> Path:
    """An adapter with random weights, large enough to change answers, saved by PEFT."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.randn_like(parameter) * 0.2)
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        kind: make_adapter(base, root / str(seed), seed, **settings)
        for seed, (kind, settings) in enumerate(KINDS.items())
    }


class Oracle:
    """Greedy answers and logits of PEFT, unmerged and merged."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._models: dict[tuple[str | None, bool], Any] = {}

    def model(self, adapter: Path | None, merged: bool = False) -> Any:
        key = (str(adapter) if adapter else None, merged)
        if key not in self._models:
            model: Any = LlamaForCausalLM.from_pretrained(self._base, dtype=torch.float32)
            if adapter is not None:
                model = peft.PeftModel.from_pretrained(model, str(adapter))
                model = model.merge_and_unload() if merged else model
            self._models[key] = model.eval()
        return self._models[key]

    def answer(self, adapter: Path | None, prompt: Sequence[int], count: int, merged: bool = False) -> list[int]:
        out = self.model(adapter, merged).generate(
            input_ids=torch.tensor([list(prompt)]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found: list[int] = out[0, len(prompt) :].tolist()
        return found

    @torch.no_grad()
    def logprobs(self, adapter: Path | None, tokens: Sequence[int]) -> torch.Tensor:
        """Of each token after the first, float32 [tokens - 1]."""
        ids = torch.tensor([list(tokens)])
        scores = self.model(adapter)(input_ids=ids).logits[0].log_softmax(-1)
        return scores[:-1].gather(1, ids[0, 1:, None])[:, 0]


@pytest.fixture(scope="session")
def oracle(base: Path) -> Oracle:
    return Oracle(base)


@pytest.fixture
def make_llm(base: Path) -> Any:
    """Engines with a ``lora`` section, closed at the end."""
    made: list[LLM] = []

    def make(named: dict[str, Path] | None = None, slots: int = 4, **sections: Any) -> LLM:
        lora = {
            "use": "torch",
            "options": {"max_loaded": slots, "max_rank": 16},
            "adapters": [{"name": name, "path": str(path)} for name, path in (named or {}).items()],
        }
        sections.setdefault("cache", {"blocks": 200})
        made.append(LLM(str(base), lora=lora, **sections))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="session")
def prompts() -> Callable[[int], list[list[int]]]:
    def make(count: int, seed: int = 0) -> list[list[int]]:
        rng = random.Random(seed)
        return [[rng.randrange(3, 300) for _ in range(rng.choice([1, 5, 16, 17, 40]))] for _ in range(count)]

    return make


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    return make_adapter


@pytest.fixture(scope="session")
def oracle_of() -> Callable[[Path], Oracle]:
    return Oracle
