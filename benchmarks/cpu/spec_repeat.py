"""Look-up speculation on a CPU, with prompts whose answers repeat them.

    python benchmarks/cpu/spec_repeat.py [--model PATH] [--threads 1] [--out FILE.jsonl]

Greedy answers of 96 tokens to requests to repeat or to correct a text, one at a time and four at a time,
without speculation, with `ngram` and with `suffix`, in turns; the best of the rounds counts. Prints wall and
CPU seconds (the latter is the fairer figure on a busy machine), acceptance and speed-up, and checks that all
answers are the same.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams

TEXTS = (
    "The committee met on Tuesday to discuss the budget for the coming year. Members agreed that the library needs "
    "a new roof before winter, and that repairs should begin in September.",
    "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n"
    "    return area(width, height) * depth\n\nprint(volume(2, 3, 4))",
    "Name: Ada Lovelace\nBorn: 1815\nCity: London\nKnown for: the first program\nName: Alan Turing\nBorn: 1912\n"
    "City: London\nKnown for: the Turing machine",
    "Our train leaves at nine from platform four. Bring warm clothes, a map and enough water, since there is no "
    "shop on the way to the lake, and the weather in the hills changes within minutes.",
)
TASKS = ("Repeat this text word for word", "Write this text again and keep everything as it is")
ENGINES: dict[str, Any] = {"plain": "none", "ngram": "ngram", "suffix": "suffix"}


def prompts() -> list[str]:
    return [
        f"<|im_start|>user\n{task}:\n{text}<|im_end|>\n<|im_start|>assistant\n{text[:40]}"
        for text in TEXTS
        for task in TASKS
    ]


def measure(llm: LLM, batch: int, tokens: int) -> tuple[dict[str, float], list[list[int]]]:
    """Seconds for all prompts, ``batch`` at a time, and the answers."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    texts, answers = prompts(), []
    llm.reset_prefix_cache()
    wall, cpu = time.perf_counter(), time.process_time()
    for at in range(0, len(texts), batch):
        answers += [output.outputs[0].token_ids for output in llm.generate(texts[at : at + batch], params)]
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = {"path": args.model, "threads": args.threads, "max_length": 1024}
    engines = {
        name: LLM(config={"model": model}, speculation=use, cache={"cpu_memory_gib": 0.5})
        for name, use in ENGINES.items()
    }
    for batch in args.batches:
        best: dict[str, dict[str, float]] = {}
        answers: dict[str, list[list[int]]] = {}
        for _ in range(args.rounds):
            for name, llm in engines.items():
                took, answers[name] = measure(llm, batch, args.tokens)
                best[name] = {key: min(value, best.get(name, took)[key]) for key, value in took.items()}
        for name, llm in engines.items():
            stats, plain = llm.stats(), best["plain"]
            row = {
                "bench": "speculation, repeated prompts", "engine": name, "batch": batch, "threads": args.threads,
                **{key: round(value, 2) for key, value in best[name].items()},
                "speedup_wall": round(plain["wall_s"] / best[name]["wall_s"], 2),
                "speedup_cpu": round(plain["cpu_s"] / best[name]["cpu_s"], 2),
                "accepted": round(stats.accepted / stats.drafted, 3) if stats.drafted else None,
                "length": round(1 + stats.accepted / stats.drafts, 2) if stats.drafts else 1.0,
                "same_answers": answers[name] == answers["plain"],
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    for llm in engines.values():
        llm.close()


if __name__ == "__main__":
    main()
