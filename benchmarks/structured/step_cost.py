"""What a step with structured outputs costs the host and, with torch's reference, the CPU: masks and their use.

    python benchmarks/structured/step_cost.py [--batch 64] [--vocabulary 128256] [--threads 1]

64 rows walk through a JSON schema with tokens drawn from their masks, as an engine's rows would. Milliseconds a
step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import tokenizers
import torch

from octavo.contracts.structured import MaskRow, Vocabulary
from octavo.ops.reference import mask_logits
from octavo.structured import StructuredOutputs
from octavo.testing.schemas import random_schema
from octavo.testing.tiny import tiny_tokenizer
from octavo_structured.backend import Guidance
from octavo_structured.options import GuidanceOptions

STEPS = 60


def vocabulary(size: int) -> Vocabulary:
    folder = tiny_tokenizer(tempfile.mkdtemp(), vocab=size)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [backend.decode([token], skip_special_tokens=False).encode() for token in range(size)]
    return Vocabulary(
        tokens=tokens,
        special_ids=frozenset({0, 1, 2}),
        eos_ids=(2,),
        encode=lambda text: backend.encode(text, add_special_tokens=False).ids,
        serialized=backend.to_str(),
    )


def endless(schema: dict[str, Any]) -> StructuredOutputs:
    """A list that does not end while this runs."""
    definitions = schema.pop("$defs", {})
    whole = {"type": "array", "items": schema, "minItems": 1000, "$defs": definitions}
    return StructuredOutputs(json=whole, disable_any_whitespace=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    words, source = vocabulary(arguments.vocabulary), np.random.default_rng(0)
    backend = Guidance(words, GuidanceOptions(threads=arguments.threads))
    grammars = [backend.compile(endless(random_schema(seed))) for seed in range(8)]
    matchers = [grammars[row % 8].matcher() for row in range(arguments.batch)]
    logits = torch.randn(arguments.batch, arguments.vocabulary)
    index, times = torch.arange(arguments.batch), {"fill": [], "accept": [], "apply": []}
    for _ in range(STEPS):
        bits = np.full((arguments.batch, words.mask_width), -1, np.int32)
        began = time.perf_counter()
        backend.fill([MaskRow(matcher, row, ()) for row, matcher in enumerate(matchers)], bits)
        filled = time.perf_counter()
        mask_logits(logits, index, torch.from_numpy(bits))
        applied = time.perf_counter()
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        chosen = [int(source.choice(np.flatnonzero(row))) for row in flags]
        told = time.perf_counter()
        problems = backend.accept([(matcher, [token]) for matcher, token in zip(matchers, chosen, strict=True)])
        times["accept"].append(time.perf_counter() - told)
        assert not any(problems), problems
        times["fill"].append(filled - began)
        times["apply"].append(applied - filled)
    facts = vars(arguments) | {
        f"{name}_ms": [round(1000 * statistics.median(took), 2), round(1000 * max(took), 2)]
        for name, took in times.items()
    }
    print(json.dumps(facts | {"meaning": "median and largest of a step"}))


if __name__ == "__main__":
    main()
