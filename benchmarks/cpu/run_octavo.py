"""Measure Octavo: `LLM` for batches, `AsyncEngine` for arrivals.

python benchmarks/cpu/run_octavo.py batch64 batch1 [--int8]
"""

from __future__ import annotations

import asyncio
from typing import Any

import runner
from engine import Answer, Engine, Setup, serve_arrivals
from workloads import Workload

from octavo import LLM, AsyncEngine, SamplingParams

BUNDLED = "bundled:smollm2-135m-instruct"


def _sections(setup: Setup, int8: bool) -> dict[str, Any]:
    """Configuration sections that give Octavo what the vLLM runner gives vLLM."""
    sections: dict[str, Any] = {
        "cache": {"prefix_caching": setup.prefix_cache, "cpu_memory_gib": 4.0},
        "scheduler": {"max_sequences": 64},
    }
    if int8:
        sections["quantization"] = {"use": "int8"}
    return sections


def _sampling(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)


class Batches:
    """`LLM.generate` with all requests of a workload."""

    def __init__(self, model: str, sections: dict[str, Any]) -> None:
        self.threads = runner.cores()
        self._llm = LLM(model=model, **sections)

    def run(self, workload: Workload) -> list[Answer]:
        prompts = [list(prompt) for prompt in workload.prompts]
        outputs = self._llm.generate(prompts, _sampling(workload.max_tokens))
        return [Answer(len(output.outputs[0].token_ids)) for output in outputs]

    def close(self) -> None:
        self._llm.close()


class Arrivals:
    """`AsyncEngine`, on an event loop that lives as long as this object."""

    def __init__(self, model: str, sections: dict[str, Any]) -> None:
        self.threads = runner.cores()
        self._loop = asyncio.Runner()
        self._engine = AsyncEngine(model=model, **sections)
        self._loop.run(self._engine.__aenter__())

    def run(self, workload: Workload) -> list[Answer]:
        return self._loop.run(serve_arrivals(workload, self._answer))

    def close(self) -> None:
        self._loop.run(self._engine.__aexit__(None, None, None))
        self._loop.close()

    async def _answer(self, prompt: tuple[int, ...], max_tokens: int) -> int:
        deltas = self._engine.generate(list(prompt), _sampling(max_tokens))
        return sum([len(delta.token_ids) async for delta in deltas])


def main() -> None:
    parser = runner.parser(__doc__, BUNDLED)
    parser.add_argument("--int8", action="store_true", help="quantise the weights to INT8 while loading")
    options = parser.parse_args()

    def build(setup: Setup) -> Engine:
        kind = Arrivals if setup.arriving else Batches
        return kind(options.model, _sections(setup, options.int8))

    name = "octavo-int8" if options.int8 else "octavo"
    runner.measure(build, name, ("torch", "octavo"), options)


if __name__ == "__main__":
    main()
