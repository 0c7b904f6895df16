"""``octavo bench latency``: one batch of equal requests; time to the first token and between tokens.

The time to the first token is that of the same batch with one token of answer. The mean time between tokens is
what the other tokens take: (seconds of all - seconds of one) / (tokens - 1).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo_bench import options, records
from octavo_bench.engine import Engine, running, timed
from octavo_bench.launch import launch_sections
from octavo_bench.options import Settled, need, settle
from octavo_bench.sizes import Job, Lengths, draw_sizes, random_jobs
from octavo_bench.table import number, render
from octavo_bench.window import add_profile, profile
from octavo_bench.workload import add_lengths

DEFAULTS: Final[dict[str, Any]] = {
    "batch": 1,
    "input_len": Lengths(128, 128),
    "output_len": Lengths(128, 128),
    "prefix_cache": None,
    "temperature": 0.0,
    "repeats": 3,
    "seed": 0,
    "warmup": 1.0,
}


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that a batch took in full, and with one token of answer."""

    whole: float
    first: float
    batch: int
    output: int

    @property
    def figures(self) -> dict[str, float]:
        """By their names in records."""
        return {
            "itl_ms": (self.whole - self.first) / (self.output - 1) * 1000,
            "ttft_ms": self.first * 1000,
            "output_tok_s": self.batch * self.output / self.whole,
        }


def configure(parser: argparse.ArgumentParser) -> None:
    """Add all arguments."""
    options.add_engine(parser, "latency")
    parser.add_argument("--batch", type=options.positive, metavar="N", help="requests at once (default: 1)")
    add_lengths(parser)
    parser.add_argument(
        "--prefix-cache",
        choices=("on", "off"),
        help="same as --set cache.prefix_caching=… (default: as configured)",
    )
    options.add_sampling(parser)
    add_profile(parser)


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure, print a table, and write records where asked for."""
    settled = settle(args, DEFAULTS, lambda v: f"latency {v['batch']} x {v['input_len']}/{v['output_len']}")
    for name in ("input_len", "output_len"):
        need(settled[name].low == settled[name].high, f"--{name.replace('_', '-')} is a plain number here.")
    need(settled["output_len"].low >= 2, "--output-len should be at least 2: the first token is measured apart.")
    with (
        launch_sections(
            config=args.config,
            model=args.model,
            shape=args.shape,
            preset=settled.preset,
            prefix_cache=settled["prefix_cache"],
            overrides=args.overrides,
        ) as sections,
        running(sections) as engine,
    ):
        print(f"{settled.label}\n{engine.describe()}", flush=True)
        if settled["warmup"]:
            measure(engine, settled, 0)
        found = [measure(engine, settled, repeat) for repeat in range(1, settled["repeats"] + 1)]
        _report(found)
        if args.json:
            origin = records.origin(settled.label, engine.context.device.name, words, commit=args.commit)
            wanted = settled.preset.metrics if settled.preset else tuple(found[0].figures)
            made = [origin.record(metric, [each.figures[metric] for each in found]) for metric in wanted]
            records.append(made, args.json)
        if args.profile:
            jobs = _jobs(engine, settled, 2 * settled["repeats"] + 2, settled["output_len"].low)
            profile(args, engine, jobs, settled["temperature"], min(each.whole for each in found))
    return 0


def measure(engine: Engine, settled: Settled, repeat: int) -> Latency:
    """One repetition: the batch with one token, then other prompts of the same length with all."""
    output = settled["output_len"].low
    first, whole = (
        timed(engine, _jobs(engine, settled, seed, tokens), settled["temperature"]).seconds
        for seed, tokens in ((2 * repeat, 1), (2 * repeat + 1, output))
    )
    return Latency(whole, first, settled["batch"], output)


def _jobs(engine: Engine, settled: Settled, seed: int, tokens: int) -> list[Job]:
    sizes = draw_sizes(settled["batch"], settled["input_len"], Lengths(tokens, tokens), 0)
    return random_jobs(sizes, engine.context.model.vocab_size, settled["seed"] + seed)


def _report(found: Sequence[Latency]) -> None:
    rows = [[str(place), *map(number, each.figures.values())] for place, each in enumerate(found, 1)]
    columns = zip(*(each.figures.values() for each in found), strict=True)
    rows.append(["median", *(number(statistics.median(column)) for column in columns)])
    print(render(["repeat", "ITL ms", "TTFT ms", "output tok/s"], rows))
