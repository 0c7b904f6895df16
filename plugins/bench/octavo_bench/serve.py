"""``octavo bench serve``: load on any server with OpenAI's API, and how long its answers took."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from octavo.errors import ConfigError, OctavoError
from octavo_bench import options, plot, records, workload
from octavo_bench.figures import LATENCIES, PERCENTILES, Seen, collected, figures, parse_goals
from octavo_bench.http import Server, parse_url
from octavo_bench.load import Asking, arrivals, model_name, offer
from octavo_bench.options import Settled
from octavo_bench.sizes import Job
from octavo_bench.table import number, render

DEFAULTS: Final[dict[str, Any]] = {**workload.DEFAULTS, "repeats": 1, "seed": 0}
_LOCALHOST: Final = ("localhost", "::1", "127.0.0.1")
# Short and frequent, so that most tokenizers spend one token on each.
_TEXT: Final = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word "
    "but not what all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go see number no "
    "way could people my than first water been call who oil its now find long down day did get come made may part"
)
_WORDS: Final = _TEXT.split()


def configure(parser: argparse.ArgumentParser) -> None:
    """Add all arguments."""
    parser.add_argument("--url", required=True, help="the server, such as http://127.0.0.1:8000")
    parser.add_argument("--model", metavar="NAME", help="model to ask for; default: the first that it lists")
    parser.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="completions (the default) are sent token ids, chats random words, about one token each",
    )
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the server's API key")
    workload.add_dataset(parser)
    _add_pace(parser)
    _add_request(parser)
    parser.add_argument(
        "--repeats", type=options.positive, metavar="N", help="runs; figures are medians (default: 1)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of lengths, token ids and arrivals (default: 0)")
    parser.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="also count the requests a second that keep to all of these: ttft:200 tpot:50 itl:100 e2el:5000",
    )
    parser.add_argument("--plot", metavar="FILE", help="write the distributions of the last run as SVG")
    parser.add_argument("--machine", metavar="TEXT", help="in the records: what the server runs on")
    parser.add_argument(
        "--server", metavar="TEXT", help="in the records: what the server is, such as 'vllm 0.26.0'"
    )
    options.add_output(parser)


def _add_pace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--request-rate", type=options.seconds, default=math.inf, metavar="R", help="a second; default: all at once"
    )
    parser.add_argument(
        "--burstiness",
        type=options.seconds,
        default=1.0,
        metavar="B",
        help="1 (the default): Poisson arrivals; lower: in bursts; higher: steadier",
    )
    parser.add_argument(
        "--speed",
        type=options.seconds,
        default=1.0,
        metavar="X",
        help="of a trace: its seconds in one (default: 1)",
    )
    parser.add_argument(
        "--max-concurrency",
        type=options.positive,
        metavar="N",
        help="requests under way at once; one that waits for its turn is counted from when it is sent",
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of sampling (default: 0)")
    parser.add_argument(
        "--no-ignore-eos", action="store_true", help="leave out ignore_eos, which OpenAI's own API lacks"
    )
    parser.add_argument("--body", type=_fields, default={}, metavar="JSON", help="fields to add to every request")
    parser.add_argument(
        "--vocab", type=options.positive, default=32000, metavar="N", help="token ids stay below (default: 32000)"
    )
    parser.add_argument(
        "--warmup-requests", type=int, default=1, metavar="N", help="sent first, and not counted (default: 1)"
    )
    parser.add_argument("--timeout", type=options.seconds, default=600.0, metavar="S", help="of one request")


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure, print a table, write records and plot where asked for. 1 when requests failed."""
    goals = parse_goals(args.goodput)
    settled = workload.settled(args, DEFAULTS, "serve")
    server = parse_url(args.url, _key(args.api_key_file))
    make = workload.jobs_maker(settled, args.vocab, None)
    _allow_many_connections()
    runs = asyncio.run(_runs(args, settled, server, make))
    found = [figures(seen, seconds, goals) for seen, seconds in runs]
    last = runs[-1][0]
    errors = [each.error for each in last if each.error is not None]
    if len(errors) == len(last):
        raise OctavoError(f"all {len(last)} requests failed; the first: {errors[0]}")
    middle = _median(found)
    print(_report(settled, middle, last, runs[-1][1]))
    if args.json:
        machine = args.machine or _machine(server)
        origin = records.origin(settled.label, machine, words, commit=args.commit)
        if args.server:
            origin = dataclasses.replace(origin, versions={**origin.versions, "server": args.server})
        made = [origin.record(name, [each[name] for each in found if name in each]) for name in middle]
        records.append(made, args.json)
    if args.plot:
        plot.write(args.plot, settled.label, collected(last), goals)
    if errors:
        print(f"{len(errors)} requests of the last run failed; the first: {errors[0]}")
    return 1 if middle["failed_requests"] or errors else 0


async def _runs(
    args: argparse.Namespace, settled: Settled, server: Server, make: Callable[[int], list[Job]]
) -> list[tuple[list[Seen], float]]:
    asking = Asking(
        model=args.model or await model_name(server),
        chat=args.endpoint == "chat",
        temperature=args.temperature,
        ignore_eos=not args.no_ignore_eos,
        timeout=args.timeout,
        fields=args.body,
    )
    warmup = [dataclasses.replace(job, at=0.0) for job in make(0)[: args.warmup_requests]]
    if warmup:
        await offer(server, asking, _put(warmup, asking), args.max_concurrency)
    runs = []
    for repeat in range(1, settled["repeats"] + 1):
        jobs = _timed(make(repeat), args, settled, repeat)
        runs.append(await offer(server, asking, _put(jobs, asking), args.max_concurrency))
    return runs


def _timed(jobs: Sequence[Job], args: argparse.Namespace, settled: Settled, repeat: int) -> list[Job]:
    """With their times: a trace's own, or drawn."""
    if settled["dataset"] == "trace":
        times = [job.at / args.speed for job in jobs]
    else:
        times = arrivals(len(jobs), args.request_rate, args.burstiness, settled["seed"] + repeat)
    return [dataclasses.replace(job, at=at) for job, at in zip(jobs, times, strict=True)]


def _put(jobs: Sequence[Job], asking: Asking) -> list[Job]:
    """As the endpoint takes them: a chat has no token ids, so each becomes a word."""
    return [dataclasses.replace(job, prompt=_text(job.prompt)) for job in jobs] if asking.chat else list(jobs)


def _text(prompt: list[int] | str) -> str:
    return prompt if isinstance(prompt, str) else " ".join(_WORDS[number % len(_WORDS)] for number in prompt)


def _median(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in found for name in each)
    return {name: statistics.median(each[name] for each in found if name in each) for name in names}


def _report(settled: Settled, middle: Mapping[str, float], last: Sequence[Seen], seconds: float) -> str:
    good = [each for each in last if each.error is None]
    lines = [
        settled.label,
        f"last run: {len(last):,} requests in {number(seconds)} s, {len(last) - len(good)} failed, "
        f"{sum(each.input_tokens for each in good):,} tokens in, {sum(each.output_tokens for each in good):,} out",
        *(f"{name:20}{number(value):>10}" for name, value in middle.items() if "_ms_" not in name),
    ]
    columns = ["mean", *(f"p{rank}" for rank in PERCENTILES)]
    rows = [
        [f"{text}, ms", *(number(middle[f"{name}_ms_{column}"]) for column in columns)]
        for name, text in LATENCIES.items()
        if f"{name}_ms_mean" in middle
    ]
    return "\n".join(lines) + "\n" + render(["", *columns], rows)


def _fields(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} should be an object such as {{"top_p": 0.9}}')
    return value


def _key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}.") from None


def _machine(server: Server) -> str:
    """Of a server elsewhere only its name is known; one here is taken to use the first GPU, if there is one."""
    if server.host not in _LOCALHOST:
        return server.host
    query = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    with contextlib.suppress(OSError):
        names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        if names:
            return names[0].strip()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _allow_many_connections() -> None:
    """As many open files as the system lets this process have; each request under way is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
