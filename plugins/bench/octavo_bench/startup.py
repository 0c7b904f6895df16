"""``octavo bench startup``: seconds from the start of a fresh process to its first token.

Cold: the folders in which compiled kernels are kept begin empty. Warm: they hold what a run before has put there.
Weights and libraries that the system has read before stay in its page cache in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from octavo.errors import OctavoError
from octavo_bench import options, records
from octavo_bench.launch import launch_sections
from octavo_bench.options import settle
from octavo_bench.table import number, render

DEFAULTS: Final[dict[str, Any]] = {"input_len": 32, "repeats": 3, "seed": 0}
# Where Triton, torch's compiler and CUDA keep what they have compiled.
_CACHES: Final = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
_CHILD: Final = (sys.executable, "-m", "octavo_bench.first_token")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process until the engine was ready, and until the first token."""

    ready: float
    token: float
    machine: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add all arguments."""
    options.add_engine(parser, "startup")
    parser.add_argument(
        "--input-len", type=options.positive, metavar="N", help="tokens of the one prompt (default: 32)"
    )
    parser.add_argument("--only", choices=("cold", "warm"), help="default: both")


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure, print a table, and write records where asked for."""
    settled = settle(args, DEFAULTS, lambda values: "startup")
    with launch_sections(
        config=args.config,
        model=args.model,
        shape=args.shape,
        preset=settled.preset,
        prefix_cache=None,
        overrides=args.overrides,
    ) as sections:
        task = {"sections": sections, "input": settled["input_len"], "seed": settled["seed"]}
        found = measure(task, settled["repeats"], args.only)
    print(f"{settled.label} on {next(iter(found.values()))[0].machine}: seconds from the start of the process")
    print(_table(found))
    if args.json:
        machine = next(iter(found.values()))[0].machine
        origin = records.origin(settled.label, machine, words, commit=args.commit)
        made = [
            origin.record(f"first_token_s_{kind}", [each.token for each in runs]) for kind, runs in found.items()
        ]
        records.append(made, args.json)
    return 0


def measure(task: Mapping[str, Any], repeats: int, only: str | None) -> dict[str, list[Start]]:
    """``cold`` and ``warm`` starts, ``repeats`` of each, or those of ``only`` one kind."""
    found: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory(prefix="octavo-kernels-") as folder:
        # The first cold start, recorded or not, leaves the kernels for the warm ones.
        colds = [start(task, Path(folder) / str(place)) for place in range(1 if only == "warm" else repeats)]
        if only != "warm":
            found["cold"] = colds
        if only != "cold":
            found["warm"] = [start(task, Path(folder) / "0") for _ in range(repeats)]
    return found


def start(task: Mapping[str, Any], caches: Path) -> Start:
    """One process, which keeps its kernels below ``caches``. Raises :class:`OctavoError` with what it said."""
    environment = {**os.environ, **{name: str(caches / name.lower()) for name in _CACHES}}
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        with subprocess.Popen(
            _CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(task, default=str))
            process.stdin.close()
            events = {name: (time.monotonic() - began, machine) for name, machine in _events(process.stdout)}
        if process.returncode or "token" not in events:
            log.seek(0)
            raise OctavoError(f"the engine did not start (exit code {process.returncode}): {log.read()[-2000:]}")
    return Start(events["ready"][0], *events["token"])


def _events(stream: IO[str]) -> Iterator[tuple[str, str]]:
    """What the child says, as it says it; other output is passed over."""
    for line in stream:
        try:
            event = json.loads(line)
            yield event["event"], event["machine"]
        except (ValueError, TypeError, KeyError):
            continue


def _table(found: Mapping[str, Sequence[Start]]) -> str:
    rows = []
    for kind, runs in found.items():
        rows += [[f"{kind} {place}", number(each.ready), number(each.token)] for place, each in enumerate(runs, 1)]
        columns = ([each.ready for each in runs], [each.token for each in runs])
        rows.append([f"{kind}, median", *(number(statistics.median(column)) for column in columns)])
    return render(["kernels", "engine ready", "first token"], rows)
