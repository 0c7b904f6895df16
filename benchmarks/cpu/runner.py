"""The measurement that all engines share: construct, warm up, time the answers, print figures."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import workloads
from engine import Answer, Engine, Setup
from workloads import Workload

UNITS = {"output_tok_s": "tok/s", "wall_s": "s", "construct_s": "s", "latency_mean_s": "s"}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def parser(description: str | None, model: str | None = None) -> argparse.ArgumentParser:
    """The options that every runner takes. Without a `model` of its own, a runner must be given one."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("workloads", nargs="+", choices=workloads.NAMES, metavar="WORKLOAD", help="%(choices)s")
    result.add_argument("--scale", type=float, default=1.0, help="shrink the request counts, for trials")
    result.add_argument("--model", default=model, required=model is None, help="the checkpoint")
    return result


class Figures:
    """Prints one JSON line a figure on the real standard output; what engines print goes to stderr."""

    def __init__(self, engine: str, packages: Sequence[str]) -> None:
        self._engine = engine
        self._versions = {"python": platform.python_version()}
        self._versions |= {name: importlib.metadata.version(name) for name in packages}
        self._stream: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(self, workload: str, metric: str, value: float, threads: int) -> None:
        figure = {
            "workload": workload,
            "engine": self._engine,
            "metric": metric,
            "value": round(value, 4),
            "unit": UNITS[metric],
            "threads": threads,
            "versions": self._versions,
        }
        print(json.dumps(figure), file=self._stream, flush=True)


def _check(workload: Workload, answers: list[Answer]) -> None:
    """Refuse a figure for answers that are missing or were cut short."""
    wrong = [answer.tokens for answer in answers if answer.tokens != workload.max_tokens]
    if wrong or len(answers) != len(workload.prompts):
        sys.exit(
            f"{workload.name}: {len(answers)} answers to {len(workload.prompts)} requests; "
            f"lengths other than {workload.max_tokens}: {wrong}"
        )


def _measure(engine: Engine, workload: Workload, figures: Figures) -> None:
    for run in range(workload.runs):
        engine.run(workloads.warm_up(f"{workload.name}-{run}", arriving=workload.arrivals is not None))
        start = time.perf_counter()
        answers = engine.run(workload)
        wall = time.perf_counter() - start
        _check(workload, answers)
        figures.emit(workload.name, "wall_s", wall, engine.threads)
        figures.emit(workload.name, "output_tok_s", workload.output_tokens / wall, engine.threads)
        latencies = [answer.latency for answer in answers if answer.latency is not None]
        if latencies:
            figures.emit(workload.name, "latency_mean_s", statistics.mean(latencies), engine.threads)


def measure(
    build: Callable[[Setup], Engine],
    engine: str,
    packages: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Construct an engine for each setup that the workloads need, and measure the workloads of that setup."""
    figures = Figures(engine, packages)
    groups: dict[Setup, list[Workload]] = {}
    for name in options.workloads:
        workload = workloads.make(name, options.scale)
        groups.setdefault(Setup.of(workload), []).append(workload)
    for index, (setup, group) in enumerate(groups.items()):
        start = time.perf_counter()
        built = build(setup)
        construct = time.perf_counter() - start
        try:
            if index == 0:  # later ones find imports done and files in the page cache
                figures.emit("start", "construct_s", construct, built.threads)
            for workload in group:
                _measure(built, workload, figures)
        finally:
            built.close()
            del built
            gc.collect()
