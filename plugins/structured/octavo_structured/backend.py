"""llguidance behind the core's contract: an Earley parser over lexemes that walks the trie of all tokens (MIT,
https://github.com/guidance-ai/llguidance). It holds no Python lock while it compiles and while it makes masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Final

import llguidance
import numpy as np

from octavo.contracts.structured import MaskRow, Matcher, Vocabulary
from octavo.errors import RequestError
from octavo.structured import StructuredOutputs
from octavo_structured.options import GuidanceOptions
from octavo_structured.source import grammar_source

_MOST_THREADS: Final = 16
_WORTH_THREADS: Final = 4  # masks; of fewer, waking the threads takes longer than making them
_SHOWN: Final = 500
_log = logging.getLogger("octavo.structured")


class Guidance:
    """A :class:`octavo.contracts.structured.StructuredBackend`."""

    def __init__(self, vocabulary: Vocabulary, options: GuidanceOptions) -> None:
        self._width = vocabulary.mask_width
        self._tokenizer = _tokenizer(vocabulary)
        self._threads = llguidance.LLExecutor(options.threads or min(os.cpu_count() or 1, _MOST_THREADS))
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=options.compile_fuel,
            step_lexer_fuel=options.step_fuel,
            max_lexer_states=options.max_lexer_states,
            max_grammar_size=options.max_grammar_size,
            verbose_errors=False,
        )

    def compile(self, constraint: StructuredOutputs) -> GuidanceGrammar:
        """See the contract."""
        source = grammar_source(constraint)
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise refusal(constraint, matcher.get_error())
        return GuidanceGrammar(matcher)

    def fill(self, rows: Sequence[MaskRow], masks: np.ndarray) -> None:
        """See the contract."""
        if masks.dtype != np.int32 or not masks.flags["C_CONTIGUOUS"] or masks.shape[1] != self._width:
            raise ValueError(f"masks must be contiguous int32 [n, {self._width}], not {masks.dtype} {masks.shape}")
        where, size = masks.ctypes.data, 4 * self._width
        plain = [(_native(row.matcher), row.at) for row in rows if not row.drafts]
        drafted = [(_native(row.matcher), row.at, list(row.drafts)) for row in rows if row.drafts]
        if len(plain) < _WORTH_THREADS:
            for native, at in plain:
                native.unsafe_compute_mask_ptr(where + at * size, size)
        else:
            self._threads.unsafe_compute_mask_ptr(plain, where, size, len(masks))
        if drafted:
            self._threads.unsafe_compute_mask_ptr_with_draft_token(drafted, where, size, len(masks))

    def accept(self, tokens: Sequence[tuple[Matcher, Sequence[int]]]) -> list[str]:
        """See the contract."""
        return [_follow(_native(matcher), list(ids)) for matcher, ids in tokens]


class GuidanceGrammar:
    """A :class:`octavo.contracts.structured.Grammar`: a matcher at the beginning, to be copied."""

    def __init__(self, start: Any) -> None:
        self._start = start

    def matcher(self) -> GuidanceMatcher:
        """See the contract."""
        return GuidanceMatcher(self._start.deep_copy())


class GuidanceMatcher:
    """A :class:`octavo.contracts.structured.Matcher`."""

    __slots__ = ("native",)

    def __init__(self, native: Any) -> None:
        self.native = native

    @property
    def complete(self) -> bool:
        """See the contract."""
        return bool(self.native.is_stopped())

    def fits(self, tokens: Sequence[int]) -> int:
        """See the contract."""
        return int(self.native.validate_tokens(list(tokens)))


def refusal(constraint: StructuredOutputs, problem: str) -> RequestError:
    """The library's own words, which say where it is."""
    field = f"structured_outputs.{constraint.form}"
    text = " ".join(problem.split())
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return RequestError(f"{field} can't be used: {shown.rstrip('.')}.", param=field)


def _native(matcher: Matcher) -> Any:
    assert isinstance(matcher, GuidanceMatcher)
    return matcher.native


def _follow(native: Any, tokens: list[int]) -> str:
    if native.is_stopped() and not native.is_error():
        return ""  # complete, and told of tokens that a step in flight had sampled
    if native.consume_tokens(tokens):
        return ""
    return f"The grammar can't go on: {' '.join(native.get_error().split())[:_SHOWN]}"


def _tokenizer(vocabulary: Vocabulary) -> Any:
    """llguidance's own copy of the tokenizer, or where it does not read that kind, one from bytes."""
    ends = list(vocabulary.eos_ids)
    try:
        return llguidance.LLTokenizer(vocabulary.serialized, n_vocab=len(vocabulary.tokens), eos_token=ends)
    except ValueError as error:
        _log.info("llguidance takes this tokenizer by its bytes: %s", error)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes(vocabulary)), eos_token=ends)


class _Bytes:
    """A vocabulary as llguidance's wrapper wants it: special tokens begin with a byte that no text has."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_ids[0]
        self.special_token_ids = sorted(vocabulary.special_ids)
        self.tokens = [
            b"\xff" + token if number in vocabulary.special_ids else token
            for number, token in enumerate(vocabulary.tokens)
        ]
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
