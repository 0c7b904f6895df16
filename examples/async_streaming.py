"""Several answers at once, as they are written. The engine runs in a process of its own.

python examples/async_streaming.py
python examples/async_streaming.py --model ./my-checkpoint
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from octavo import AsyncEngine, SamplingParams

QUESTIONS = ("What is the capital of France?", "Name three colours.")


async def answer(engine: AsyncEngine, number: int, question: str, params: SamplingParams) -> None:
    """Print an answer piece by piece. Leaving the loop early would abort the request."""
    prompt = await engine.render_chat([{"role": "user", "content": question}])
    async for delta in engine.generate(prompt, params, add_special_tokens=False):
        if delta.text:
            print(f"{number}: {delta.text!r}")
        if delta.finish_reason is not None:
            print(f"{number}: that was all ({delta.finish_reason})")


async def run(model: str, max_tokens: int) -> None:
    """Ask all questions at once."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    async with AsyncEngine(model) as engine:
        await asyncio.gather(
            *(answer(engine, number, question, params) for number, question in enumerate(QUESTIONS, 1))
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args(argv)
    asyncio.run(run(args.model, args.max_tokens))


if __name__ == "__main__":
    main()
