"""The engine under measurement: built, fed with all requests at once, and timed."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError
from octavo.hookspecs import hookimpl
from octavo.params import SamplingParams
from octavo_bench.sizes import Job

if TYPE_CHECKING:
    from octavo import LLM
    from octavo.records import Context


class _Witness:
    """A plugin that keeps what the engine says of itself when it is ready."""

    def __init__(self) -> None:
        self.context: Context | None = None

    @hookimpl
    def octavo_engine_started(self, ctx: Context) -> None:
        """Keep ``ctx``."""
        self.context = ctx


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine and its circumstances; ``prefix_cache`` says whether it reuses prompt beginnings."""

    llm: LLM
    context: Context
    prefix_cache: bool

    def describe(self) -> str:
        """One line for headings."""
        ctx = self.context
        cache = "on" if self.prefix_cache else "off"
        return (
            f"{ctx.model.name} in {ctx.dtype} (KV {ctx.kv_dtype}) on {ctx.device.name}; at most "
            f"{ctx.max_sequences} sequences, {ctx.max_batch_tokens} tokens a step; prefix cache {cache}"
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """One call of ``generate``: seconds on the clock, tokens in and out, and what the engine counted."""

    seconds: float
    requests: int
    input_tokens: int
    output_tokens: int
    steps: int
    cached_tokens: int
    preemptions: int

    @property
    def rates(self) -> dict[str, float]:
        """The figures of throughput by their names in records."""
        return {
            "output_tok_s": self.output_tokens / self.seconds,
            "input_tok_s": self.input_tokens / self.seconds,
            "requests_s": self.requests / self.seconds,
        }


@contextlib.contextmanager
def running(sections: Mapping[str, Any]) -> Iterator[Engine]:
    """An engine in this process, closed at the end. Raises what is wrong with the configuration."""
    from octavo import LLM

    witness = _Witness()
    with LLM(config=sections, plugins=[witness]) as llm:
        if witness.context is None:
            raise OctavoError("the engine did not say that it has started.")
        yield Engine(llm, witness.context, llm.config.cache.prefix_caching)


def timed(
    engine: Engine,
    jobs: Sequence[Job],
    temperature: float = 0.0,
    around: contextlib.AbstractContextManager[None] | None = None,
    adapters: Sequence[str] = (),
) -> Timing:
    """Answer all jobs in one call; the clock runs over that call only, on an empty prefix cache. They use
    ``adapters`` in turn.

    ``around`` is entered just before that call and left after it, the clock stopped. Raises :class:`OctavoError`
    when an answer has another length than was asked for.
    """
    made: dict[int, SamplingParams] = {}
    for job in jobs:
        made.setdefault(job.output, _params(job.output, temperature))
    params = [made[job.output] for job in jobs]
    prompts = [job.prompt for job in jobs]
    names = [adapters[at % len(adapters)] for at in range(len(jobs))] if adapters else None
    engine.llm.reset_prefix_cache()
    gc.collect()
    before = engine.llm.stats()
    with around or contextlib.nullcontext():
        began = time.perf_counter()
        outputs = engine.llm.generate(prompts, params, adapter=names)
        seconds = time.perf_counter() - began
    after = engine.llm.stats()
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    if lengths != [job.output for job in jobs]:
        raise OctavoError(
            f"answers of {sum(job.output for job in jobs)} tokens were asked for, {sum(lengths)} came."
        )
    return Timing(
        seconds=seconds,
        requests=len(jobs),
        input_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        output_tokens=sum(lengths),
        steps=after.steps - before.steps,
        cached_tokens=after.prefix_hits - before.prefix_hits,
        preemptions=after.preemptions - before.preemptions,
    )


def _params(tokens: int, temperature: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=tokens, ignore_eos=True, detokenize=False)
