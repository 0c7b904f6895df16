"""What a runner must provide for its engine, and the arrival clock that asynchronous engines share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from workloads import Workload


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine is constructed for. `arriving`: requests come one by one while others run."""

    prefix_cache: bool
    arriving: bool

    @classmethod
    def of(cls, workload: Workload) -> Setup:
        return cls(prefix_cache=workload.prefix_cache, arriving=workload.arrivals is not None)


@dataclass(frozen=True, slots=True)
class Answer:
    """How many tokens a request got, and how long after its arrival the last one came (if that was seen)."""

    tokens: int
    latency: float | None = None


class Engine(Protocol):
    """A constructed engine."""

    threads: int

    def run(self, workload: Workload) -> list[Answer]:
        """Answer all requests of the workload, not before their arrival times."""
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...


async def serve_arrivals(
    workload: Workload, answer: Callable[[tuple[int, ...], int], Awaitable[int]]
) -> list[Answer]:
    """Send each prompt at its time; `answer(prompt, max_tokens)` returns the number of tokens that came."""
    start = time.perf_counter()

    async def serve(prompt: tuple[int, ...], arrival: float) -> Answer:
        await asyncio.sleep(start + arrival - time.perf_counter())
        tokens = await answer(prompt, workload.max_tokens)
        return Answer(tokens, time.perf_counter() - start - arrival)

    arrivals = workload.arrivals or (0.0,) * len(workload.prompts)
    requests = [serve(prompt, at) for prompt, at in zip(workload.prompts, arrivals, strict=True)]
    return list(await asyncio.gather(*requests))
