"""Measure Octavo: `LLM` for batches, `AsyncEngine` for arrivals.

python benchmarks/cpu/run_octavo.py batch64 batch1 [--quantization int8]
"""

from __future__ import annotations

import asyncio
from typing import Any

import runner
from engine import Answer, Engine, Setup, serve_arrivals
from workloads import Workload

from octavo import LLM, AsyncEngine, SamplingParams

BUNDLED = "bundled:smollm2-135m-instruct"
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"use": "int8"},
    "int4": {"use": "int4", "options": {"group_size": 32, "skip": []}},
}


def _sections(setup: Setup, scheme: str | None) -> dict[str, Any]:
    """Configuration sections that give Octavo what the vLLM runner gives vLLM."""
    sections: dict[str, Any] = {
        "cache": {"prefix_caching": setup.prefix_cache, "cpu_memory_gib": 4.0},
        "scheduler": {"max_sequences": 64},
    }
    if scheme is not None:
        sections["quantization"] = SCHEMES[scheme]
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
    parser.add_argument("--quantization", choices=SCHEMES, help="quantise the weights while loading")
    options = parser.parse_args()

    def build(setup: Setup) -> Engine:
        kind = Arrivals if setup.arriving else Batches
        return kind(options.model, _sections(setup, options.quantization))

    name = f"octavo-{options.quantization}" if options.quantization else "octavo"
    runner.measure(build, name, ("torch", "octavo"), options)


if __name__ == "__main__":
    main()
