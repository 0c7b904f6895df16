"""Many prompts at once, in this process.

python examples/offline_batch.py
python examples/offline_batch.py --model ./my-checkpoint
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from octavo import LLM, SamplingParams

QUESTIONS = ("What is the capital of France?", "Name three colours.", "What do bees make?")


def main(argv: Sequence[str] | None = None) -> None:
    """Answer some questions, and say what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args(argv)
    with LLM(args.model) as llm:
        params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
        conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
        for question, output in zip(QUESTIONS, llm.chat(conversations, params), strict=True):
            answer, metrics = output.outputs[0], output.metrics
            seconds = f"{metrics.duration:.2f} s" if metrics else "unknown"
            print(f"{question}\n  {answer.text.strip()}")
            print(f"  ({len(answer.token_ids)} tokens, {answer.finish_reason}, {seconds})\n")


if __name__ == "__main__":
    main()
