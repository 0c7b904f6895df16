"""The command ``run-batch``. Light to import; engine and handlers are imported by ``run``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING

from octavo.errors import OctavoError
from octavo_api.options import OpenAIOptions

if TYPE_CHECKING:
    from octavo.config.launch import LaunchConfig
    from octavo_api.batch import Tally


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the files, and how the model is chosen."""
    parser.add_argument("config", nargs="?", help="launch file")
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="requests, one a line; - reads stdin")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="answers; - writes to stdout")
    parser.add_argument("--model", metavar="PATH", help="a checkpoint, in place of the launch file's")
    parser.add_argument("--concurrency", type=_positive, default=256, help="requests worked on at a time")
    parser.add_argument("--scoring", action="store_true", help="take /v1/score and /v1/rerank as well")


def run(args: argparse.Namespace) -> int:
    """Answer all lines; 1 where some of them failed."""
    with ExitStack() as stack:
        reader: IO[bytes] = sys.stdin.buffer
        writer: IO[bytes] = sys.stdout.buffer
        try:
            if args.input != "-":
                reader = stack.enter_context(open(args.input, "rb"))
            if args.output != "-":
                writer = stack.enter_context(open(args.output, "wb"))
        except OSError as error:
            raise OctavoError(f"can't open {error.filename!r}: {error.strerror}.") from error
        tally = asyncio.run(_run(args, reader, writer))
    print(f"{tally.answered} answered, {tally.failed} failed", file=sys.stderr)
    return 1 if tally.failed else 0


async def _run(args: argparse.Namespace, reader: IO[bytes], writer: IO[bytes]) -> Tally:
    from octavo import AsyncEngine
    from octavo_api.batch import Batch, read_lines

    def write(line: bytes) -> None:
        writer.write(line)
        writer.flush()

    async with AsyncEngine(args.model, config=args.config) as engine:
        options = _options(engine.config, args.scoring)
        return await Batch(engine, options, args.concurrency).run(read_lines(reader), write)


def _options(config: LaunchConfig, scoring: bool) -> OpenAIOptions:
    """What the launch file says of the HTTP surface holds here too, as far as it means anything."""
    given = [surface.options for surface in config.api if isinstance(surface.options, OpenAIOptions)]
    options = given[0] if given else OpenAIOptions.model_validate({})
    return options.model_copy(update={"scoring": "cosine"}) if scoring else options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
