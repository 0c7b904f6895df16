"""FP8, INT8 and codebook linears on a GPU: the kernels against float64, and whole engines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
PROMPTS = [[5, 7, 11, 13, 17, 200], [3], list(range(20, 150)), [9, 8, 7]]


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "plugins/quant" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels(dtype: str) -> None:
    import torch

    assert load("fp8_cases").run("cuda", getattr(torch, dtype))


def test_codebook_kernels() -> None:
    import torch

    assert load("codebook_cases").run("cuda", torch.bfloat16)


def test_cublas_takes_a_scale_for_each_token_and_output() -> None:
    import torch

    from octavo_quant.fp8.linear import Fp8Weights, scaled_matmul

    codes, scales, x, x_scales = load("fp8_cases").operands(96, 272, 528, "cuda")
    bias = torch.randn(272, device="cuda", dtype=torch.bfloat16)
    found = scaled_matmul(x, x_scales, Fp8Weights(codes, scales), bias, torch.bfloat16).double()
    expected = (x.double() * x_scales) @ (codes.double() * scales.unsqueeze(1)).T + bias
    assert (found - expected).norm() / expected.norm() < 5e-3


WAYS: dict[str, dict[str, Any]] = {
    "channels": {"quantization": {"use": "fp8"}},
    "tensors": {"quantization": {"use": "fp8", "options": {"weights": "per_tensor"}}},
    "weights only": {"quantization": {"use": "fp8", "options": {"activations": "none"}}},
    "cache": {"cache": {"dtype": "fp8_e4m3"}},
    "all": {"quantization": {"use": "fp8"}, "cache": {"dtype": "fp8_e4m3"}},
}


@pytest.mark.parametrize("way", WAYS)
def test_engine(way: str, tmp_path: Path) -> None:
    """A prompt's log-probabilities follow the unquantised model's: how exactly, is tested on a CPU."""
    import torch

    folder = tiny_llama(
        tmp_path, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512, tied=False, dtype="bfloat16"
    )
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)

    def told(**sections: Any) -> list[float]:
        with LLM(model={"path": str(folder)}, scheduler={"max_sequences": 8}, **sections) as llm:
            answers = llm.generate(PROMPTS, GREEDY)
            assert [len(answer.outputs[0].token_ids) for answer in answers] == [24] * len(PROMPTS)
            outputs = llm.generate([PROMPTS[2]], params)
            return [entry.logprob for entry in outputs[0].prompt_logprobs or [] if entry is not None]

    plain, found = told(), told(**WAYS[way])
    assert len(plain) == len(found) > 100
    together = torch.corrcoef(torch.tensor([plain, found]))[0, 1]
    assert together > 0.9, float(together)
