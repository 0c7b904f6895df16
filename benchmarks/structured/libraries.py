"""llguidance and xgrammar on the same random schemas: what they refuse, how long they compile, how long a mask
takes.

    python benchmarks/structured/libraries.py [--schemas 200] [--vocabulary 49152 128256 151936]

Needs both packages. Vocabularies beyond the bundled model's are made by joining its tokens. Each library walks
through its own answers, drawn from its masks with a bias to structure; one line a library and vocabulary, in JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import llguidance
import llguidance.numpy
import numpy as np
import torch
import xgrammar

from octavo.engine.tokenizer import load_tokenizer
from octavo.loading.profile import read_profile
from octavo.testing.schemas import random_schema

MOST_TOKENS = 400


TOKENIZER = load_tokenizer(read_profile("bundled:smollm2-135m-instruct"))


def vocabulary(size: int) -> tuple[list[bytes], int, list[int]]:
    """Tokens, the end-of-text id and the special ids."""
    tokenizer = TOKENIZER
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    plain = [t for i, t in enumerate(tokens) if i not in tokenizer.special_ids]
    seen, source = set(tokens), random.Random(0)
    while len(tokens) < size:
        joined = source.choice(plain) + source.choice(plain)
        if joined not in seen and len(joined) < 20:
            seen.add(joined)
            tokens.append(joined)
    return tokens[:size], tokenizer.eos_ids[0], sorted(tokenizer.special_ids)


class Guidance:
    """llguidance."""

    def __init__(self, tokens: list[bytes], eos: int, special: list[int]) -> None:
        class Words:
            eos_token_id, bos_token_id, special_token_ids = eos, None, special

            def __call__(self, text: str | bytes) -> list[int]:
                return TOKENIZER.encode(text if isinstance(text, str) else text.decode(), False)

        words = Words()
        words.tokens = [b"\xff" + t if i in special else t for i, t in enumerate(tokens)]
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words))
        self.mask = llguidance.numpy.allocate_token_bitmask(1, len(tokens))

    def compile(self, schema: dict[str, Any]) -> Any:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        matcher = llguidance.LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def fill(self, matcher: Any) -> np.ndarray:
        llguidance.numpy.fill_next_token_bitmask(matcher, self.mask)
        return self.mask[0]

    def accept(self, matcher: Any, token: int) -> None:
        if not matcher.consume_token(token):
            raise ValueError(matcher.get_error())

    def done(self, matcher: Any) -> bool:
        return bool(matcher.is_stopped())


class XGrammar:
    """xgrammar."""

    def __init__(self, tokens: list[bytes], eos: int, special: list[int]) -> None:
        info = xgrammar.TokenizerInfo(tokens, stop_token_ids=[eos])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.mask = xgrammar.allocate_token_bitmask(1, len(tokens))

    def compile(self, schema: dict[str, Any]) -> Any:
        grammar = self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
        return xgrammar.GrammarMatcher(grammar)

    def fill(self, matcher: Any) -> np.ndarray:
        matcher.fill_next_token_bitmask(self.mask)
        return self.mask[0].numpy()

    def accept(self, matcher: Any, token: int) -> None:
        if not matcher.accept_token(token):
            raise ValueError("token refused")

    def done(self, matcher: Any) -> bool:
        return bool(matcher.is_terminated())


def walk(
    library: Any, matcher: Any, size: int, source: np.random.Generator, eos: int
) -> Iterator[tuple[int, float]]:
    """Tokens drawn evenly from the allowed ones, and the seconds that each mask took."""
    for _ in range(MOST_TOKENS):
        start = time.perf_counter()
        mask = library.fill(matcher)
        took = time.perf_counter() - start
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:size]
        allowed = np.flatnonzero(bits)
        token = int(source.choice(allowed))
        yield token, took
        if token == eos:
            return
        library.accept(matcher, token)
        if library.done(matcher):
            return


def measure(kind: type, size: int, count: int) -> dict[str, Any]:
    tokens, eos, special = vocabulary(size)
    start = time.perf_counter()
    library = kind(tokens, eos, special)
    setup, source = time.perf_counter() - start, np.random.default_rng(0)
    compiled, masks, refused, wrong, unfinished = [], [], 0, 0, 0
    for seed in range(count):
        schema = random_schema(seed)
        start = time.perf_counter()
        try:
            matcher = library.compile(schema)
        except Exception:
            refused += 1
            continue
        compiled.append(time.perf_counter() - start)
        pairs = list(walk(library, matcher, size, source, eos))
        masks += [took for _, took in pairs]
        if len(pairs) == MOST_TOKENS:
            unfinished += 1
            continue
        text = b"".join(tokens[token] for token, _ in pairs if token != eos)
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError):
            wrong += 1
    ms = [1000 * took for took in masks]
    return {
        "library": kind.__name__.lower(),
        "vocabulary": size,
        "schemas": count,
        "refused": refused,
        "wrong": wrong,
        "unfinished": unfinished,
        "setup_s": round(setup, 2),
        "compile_ms": [round(1000 * x, 2) for x in (statistics.median(compiled), max(compiled))],
        "mask_ms": [round(x, 4) for x in (statistics.mean(ms), float(np.percentile(ms, 99)), max(ms))],
        "masks": len(ms),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--vocabulary", type=int, nargs="*", default=[49152, 128256, 151936])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size, kind in itertools.product(arguments.vocabulary, (Guidance, XGrammar)):
        print(json.dumps(measure(kind, size, arguments.schemas)), flush=True)


if __name__ == "__main__":
    main()
