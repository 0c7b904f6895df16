"""``octavo bench WHAT …``: hands the rest of the command line to the module that measures WHAT."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Final

KINDS: Final[dict[str, tuple[str, str]]] = {
    "throughput": ("octavo_bench.throughput", "Offline: all requests at once, tokens a second."),
    "latency": ("octavo_bench.latency", "Offline: one batch, time to the first token and between tokens."),
    "serve": ("octavo_bench.serve", "Load on a server with OpenAI's API, Octavo or another."),
    "startup": ("octavo_bench.startup", "A fresh process: seconds from its start to the first token."),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what to measure; its own arguments are read by :func:`run`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        [
            "what to measure:",
            *(f"  {name:10}  {summary}" for name, (_, summary) in KINDS.items()),
            "",
            "`octavo bench WHAT --help` shows the options of each.",
        ]
    )
    parser.add_argument("what", choices=KINDS, metavar="WHAT", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="options of WHAT")


def run(args: argparse.Namespace) -> int:
    """Measure; the exit code is 1 where a server failed requests."""
    name, summary = KINDS[args.what]
    module = importlib.import_module(name)
    parser = argparse.ArgumentParser(prog=f"octavo bench {args.what}", description=summary)
    module.configure(parser)
    given = parser.parse_args(args.rest)
    code: int = module.run(given, [args.what, *args.rest])
    return code


def bench(words: Sequence[str]) -> int:
    """Run with these words after ``octavo bench``."""
    parser = argparse.ArgumentParser(prog="octavo bench")
    configure(parser)
    return run(parser.parse_args(words))
