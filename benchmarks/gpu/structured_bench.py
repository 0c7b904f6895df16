"""What structured outputs cost a batch: tokens a second with and without them, on random weights.

    python benchmarks/gpu/structured_bench.py [--shape 8b|tiny] [--batch 64] [--tokens 256] [--out FILE.jsonl]

The model is Llama 3's 8B shape with random weights and a made-up tokenizer of 128,256 tokens (``tiny``: one that
runs on a CPU). Every answer has the same length in every mode, for no grammar comes to an end before it. Each mode
is run once to warm up and then timed; "off" is timed before and after the others. Needs llguidance.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.testing.tiny import tiny_tokenizer

VOCABULARY = 128_256
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "vocab_size": VOCABULARY,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
RECORD = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "name": {"type": "string"},
        "kind": {"enum": ["red", "green", "blue"]},
        "scores": {"type": "array", "items": {"type": "number"}, "maxItems": 4},
        "note": {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "null"}]},
    },
    "required": ["id", "name", "kind", "scores"],
    "additionalProperties": False,
}
FORMS: Mapping[str, dict[str, Any] | None] = {
    "off": None,
    "json schema": {"json": {"type": "array", "items": RECORD, "minItems": 5000}, "disable_any_whitespace": True},
    "json, any": {"json": {"type": "array", "minItems": 5000}},
    "regex": {"regex": "([a-z]{1,9} ){5000}"},
    "off again": None,
}


def timed(llm: LLM, form: dict[str, Any] | None, batch: int, tokens: int, share: float) -> float:
    """Seconds for ``batch`` answers of ``tokens`` tokens; the first ``share`` of them have the form."""
    source = random.Random(0)
    prompts = [[source.randrange(3, 250) for _ in range(64)] for _ in range(batch)]
    held = None if form is None else StructuredOutputs(**form)
    params = [
        SamplingParams(
            max_tokens=tokens, ignore_eos=True, detokenize=False, seed=index,
            structured_outputs=held if index < share * batch else None,
        )
        for index in range(batch)
    ]  # fmt: skip
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate(prompts, params)
    took = time.perf_counter() - began
    short = [len(output.outputs[0].token_ids) for output in outputs if len(output.outputs[0].token_ids) != tokens]
    if short:
        sys.exit(f"{len(short)} answers were shorter than {tokens} tokens: {short[:5]}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["8b", "tiny"], default="8b")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = tiny_tokenizer(tempfile.mkdtemp(), vocab=VOCABULARY)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B if arguments.shape == "8b" else TINY))
    sections = {"scheduler": {"max_sequences": arguments.batch}, "cache": {"memory": 0.6, "cpu_memory_gib": 1.0}}
    lines, base = [], 0.0
    with LLM(model={"path": str(folder), "loader": "dummy", "max_length": 2048}, **sections) as llm:
        for name, form in FORMS.items():
            for share in (1.0, 0.5) if name == "json schema" else (1.0,):
                took = min(timed(llm, form, arguments.batch, arguments.tokens, share) for _ in range(3))
                rate = arguments.batch * arguments.tokens / took
                base = base or rate
                shown = name if share == 1.0 else f"{name}, {share:.0%} of rows"
                print(f"{shown:26} {rate:10.0f} tok/s {100 * (1 - rate / base):6.1f}% lost", flush=True)
                lines.append({"mode": shown, "tok_s": round(rate, 1), "lost": round(1 - rate / base, 4)})
    facts = {"shape": arguments.shape, "batch": arguments.batch, "tokens": arguments.tokens}
    for line in lines:
        print(json.dumps(facts | line))
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(facts | line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
