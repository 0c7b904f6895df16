"""Measure vLLM's CPU build: `LLM` for batches, `AsyncLLM` (what its server uses) for arrivals.

VLLM_PYTHON benchmarks/cpu/run_vllm.py batch64 batch1 --model HF_FOLDER
"""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import runner
from engine import Answer, Engine, Setup, serve_arrivals
from workloads import Workload

# Read when vLLM is imported. It keeps one core for itself unless told otherwise.
os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm import LLM, AsyncEngineArgs, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM


def _arguments(folder: str, setup: Setup) -> dict[str, Any]:
    return {
        "model": folder,
        "dtype": "float32",
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "enable_prefix_caching": setup.prefix_cache,
    }


def _sampling(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, **more)


class Batches:
    """`LLM.generate` with all requests of a workload."""

    def __init__(self, folder: str, setup: Setup) -> None:
        self.threads = runner.cores()
        self._llm = LLM(**_arguments(folder, setup))

    def run(self, workload: Workload) -> list[Answer]:
        prompts = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in workload.prompts]
        outputs = self._llm.generate(prompts, _sampling(workload.max_tokens), use_tqdm=False)
        return [Answer(len(output.outputs[0].token_ids)) for output in outputs]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class Arrivals:
    """`AsyncLLM`, on an event loop that lives as long as this object."""

    def __init__(self, folder: str, setup: Setup) -> None:
        self.threads = runner.cores()
        self._loop = asyncio.Runner()
        self._numbers = itertools.count()
        self._engine = self._loop.run(self._construct(_arguments(folder, setup)))

    async def _construct(self, arguments: dict[str, Any]) -> AsyncLLM:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    def run(self, workload: Workload) -> list[Answer]:
        return self._loop.run(serve_arrivals(workload, self._answer))

    def close(self) -> None:
        self._engine.shutdown()
        self._loop.close()

    async def _answer(self, prompt: tuple[int, ...], max_tokens: int) -> int:
        sampling = _sampling(max_tokens, output_kind=RequestOutputKind.DELTA)
        tokens = 0
        async for output in self._engine.generate(
            TokensPrompt(prompt_token_ids=list(prompt)), sampling, request_id=str(next(self._numbers))
        ):
            tokens += len(output.outputs[0].token_ids)
        return tokens


def main() -> None:
    options = runner.parser(__doc__).parse_args()

    def build(setup: Setup) -> Engine:
        kind = Arrivals if setup.arriving else Batches
        return kind(options.model, setup)

    runner.measure(build, "vllm", ("torch", "vllm-cpu"), options)


if __name__ == "__main__":
    main()
