"""The requests of a measurement: arguments that describe them, and the requests themselves."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Final

from octavo_bench import options
from octavo_bench.datasets import sharegpt_jobs, trace_sizes
from octavo_bench.options import Settled, need, settle
from octavo_bench.sizes import Job, Lengths, draw_sizes, random_jobs

DATASETS: Final = ("random", "fixed", "shared-prefix", "sharegpt", "trace")
DEFAULTS: Final[dict[str, Any]] = {
    "dataset": "random",
    "requests": 128,
    "input_len": Lengths(512, 512),
    "output_len": Lengths(128, 128),
    "prefix_len": 1024,
    "path": None,
}
# What is in the files, unless told otherwise.
_FROM_FILES: Final[dict[str, dict[str, Any]]] = {
    "sharegpt": {"input_len": None, "output_len": None},
    "trace": {"input_len": None, "output_len": None, "requests": None},
}


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add what says how many requests there are and what is in them."""
    parser.add_argument("--requests", type=options.positive, metavar="N", help="requests (default: 128)")
    parser.add_argument(
        "--scale", type=options.scale, metavar="X", help="shrink the number of requests, for trials"
    )
    parser.add_argument(
        "--dataset",
        choices=DATASETS,
        help="random: random token ids of the lengths given (the default); fixed: the same, only plain lengths; "
        "shared-prefix: all prompts begin alike; sharegpt: conversations from --path; trace: lengths from --path",
    )
    add_lengths(parser)
    parser.add_argument("--prefix-len", type=options.positive, metavar="N", help="tokens in common (default: 1024)")
    parser.add_argument(
        "--path",
        metavar="FILE",
        help='of sharegpt: a JSON list; of trace: lines like {"timestamp": 0.5, "input": 512, "output": 64}',
    )


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """Add ``--input-len`` and ``--output-len``."""
    text = "tokens of a prompt, a number or uniform:100-1024"
    parser.add_argument("--input-len", type=options.lengths, metavar="N", help=text)
    parser.add_argument("--output-len", type=options.lengths, metavar="N", help="the same of an answer")


def settled(args: argparse.Namespace, defaults: Mapping[str, Any], command: str) -> Settled:
    """What is to be measured, with options refused that the data set has no use for."""

    def name(values: Mapping[str, Any]) -> str:
        lengths = f" x {values['input_len']}/{values['output_len']}" if values["input_len"] else ""
        return f"{command} {values['dataset']} {values['requests'] or 'all'}{lengths}"

    found = settle(args, {**defaults, **_FROM_FILES.get(args.dataset, {})}, name)
    dataset, lengths = found["dataset"], [found["input_len"], found["output_len"]]
    plain = all(each is None or each.low == each.high for each in lengths)
    files = " or ".join(_FROM_FILES)
    need(dataset != "fixed" or plain, "--dataset fixed takes plain lengths.")
    need((dataset in _FROM_FILES) == bool(found["path"]), f"--path goes with --dataset {files}, and they with it.")
    if dataset in _FROM_FILES:
        need(lengths[0] is None, f"--dataset {dataset} has its own lengths: leave out --input-len.")
        need(lengths[1] is None or (dataset == "sharegpt" and plain), f"--output-len is no use to {dataset} so.")
    return found


def jobs_maker(
    settled: Settled, vocab_size: int, encode: Callable[[str], list[int]] | None
) -> Callable[[int], list[Job]]:
    """A function that makes the requests of one repetition: the same sizes each time, random ids fresh.

    Without ``encode`` the prompts of conversations stay text.
    """
    seed, count = settled["seed"], settled["requests"]
    if settled["dataset"] == "sharegpt":
        output = settled["output_len"]
        jobs = sharegpt_jobs(settled["path"], count, output.low if output else None, seed, encode)
        return lambda repeat: jobs
    if settled["dataset"] == "trace":
        sizes = trace_sizes(settled["path"], count)
    else:
        sizes = draw_sizes(count, settled["input_len"], settled["output_len"], seed)
    prefix = settled["prefix_len"] if settled["dataset"] == "shared-prefix" else 0
    return lambda repeat: random_jobs(sizes, vocab_size, seed + repeat, prefix)
