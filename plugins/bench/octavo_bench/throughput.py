"""``octavo bench throughput``: all requests at once through ``LLM.generate``, tokens a second."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from octavo_bench import options, records, workload
from octavo_bench.adapters import with_adapters
from octavo_bench.engine import Engine, Timing, running, timed
from octavo_bench.launch import launch_sections
from octavo_bench.options import Settled, need
from octavo_bench.sizes import Job
from octavo_bench.table import number, render
from octavo_bench.window import add_profile, profile

DEFAULTS: Final[dict[str, Any]] = {
    **workload.DEFAULTS,
    "prefix_cache": None,
    "temperature": 0.0,
    "repeats": 3,
    "seed": 0,
    "warmup": 1.0,
    "adapters": None,
    "rank": 16,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add all arguments."""
    options.add_engine(parser, "throughput")
    workload.add_dataset(parser)
    parser.add_argument(
        "--prefix-cache",
        choices=("on", "off", "both"),
        help="same as --set cache.prefix_caching=…; both: one process after the other (default: as configured)",
    )
    options.add_sampling(parser)
    parser.add_argument(
        "--adapters",
        type=options.positive,
        metavar="N",
        help="LoRA adapters of random weights on all linear layers, which the requests use in turn (default: none)",
    )
    parser.add_argument("--rank", type=options.positive, metavar="R", help="rank of the adapters (default: 16)")
    add_profile(parser)


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure, print a table, and write records where asked for."""
    settled = workload.settled(args, DEFAULTS, "throughput")
    need(settled["adapters"] is not None or args.rank is None, "--rank goes with --adapters.")
    if settled["adapters"] is not None and not args.label:
        label = f"{settled.label}, {settled['adapters']} adapters of rank {settled['rank']}"
        settled = replace(settled, label=label)
    if settled["prefix_cache"] == "both":
        need(not args.profile, "--profile goes with --prefix-cache on or off, not with both.")
        return _both(words)
    with (
        launch_sections(
            config=args.config,
            model=args.model,
            shape=args.shape,
            preset=settled.preset,
            prefix_cache=settled["prefix_cache"],
            overrides=args.overrides,
        ) as sections,
        with_adapters(sections, settled["adapters"], settled["rank"]) as (adapted, names),
        running(adapted) as engine,
    ):
        print(f"{settled.label}\n{engine.describe()}", flush=True)
        make = workload.jobs_maker(settled, engine.context.model.vocab_size, engine.llm.encode)
        timings = _measure(engine, settled, make, names)
        _report(timings)
        if args.json:
            _record(args, words, settled, engine, timings)
        if args.profile:
            jobs = make(settled["repeats"] + 1)
            profile(args, engine, jobs, settled["temperature"], min(each.seconds for each in timings), names)
    return 0


def _both(words: Sequence[str]) -> int:
    """Two engines, each with the device for itself, which only the end of a process makes sure of."""
    for state in ("on", "off"):
        command = [sys.executable, "-m", "octavo_bench", *words, "--prefix-cache", state]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    return 0


def _measure(
    engine: Engine, settled: Settled, make: Callable[[int], list[Job]], names: Sequence[str]
) -> list[Timing]:
    jobs = make(0)
    first = jobs[: round(len(jobs) * settled["warmup"])]
    if first:
        timed(engine, first, settled["temperature"], adapters=names)
    return [
        timed(engine, make(repeat), settled["temperature"], adapters=names)
        for repeat in range(1, settled["repeats"] + 1)
    ]


def _report(timings: Sequence[Timing]) -> None:
    rows = [[str(place), number(each.seconds), *map(number, _rates(each))] for place, each in enumerate(timings, 1)]
    middle = [statistics.median(column) for column in zip(*map(_rates, timings), strict=True)]
    rows.append(["median", number(statistics.median(each.seconds for each in timings)), *map(number, middle)])
    print(render(["repeat", "seconds", "output tok/s", "input tok/s", "requests/s"], rows))
    last = timings[-1]
    print(
        f"{last.requests:,} requests, {last.input_tokens:,} tokens in, {last.output_tokens:,} out, "
        f"{last.steps:,} steps, {last.cached_tokens:,} tokens from the prefix cache, {last.preemptions} preemptions"
    )


def _rates(timing: Timing) -> list[float]:
    return list(timing.rates.values())


def _record(
    args: argparse.Namespace, words: Sequence[str], settled: Settled, engine: Engine, timings: Sequence[Timing]
) -> None:
    origin = records.origin(settled.label, engine.context.device.name, words, commit=args.commit)
    ending = ""
    if settled["dataset"] == "shared-prefix":
        ending = "_on" if engine.prefix_cache else "_off"
    wanted = settled.preset.metrics if settled.preset else tuple(timings[0].rates)
    made = [origin.record(metric + ending, [each.rates[metric] for each in timings]) for metric in wanted]
    records.append(made, args.json)
