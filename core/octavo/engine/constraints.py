"""Answers that are held to a grammar: their masks before a step is sampled, their tokens after it.

A mask follows from the tokens before it. So a step with such rows is launched up to its logits, the step before it
is read, and the masks are made on the host while the device still computes (:meth:`EngineCore._advance`). An answer
ends as soon as its grammar allows nothing more, whatever ``min_tokens`` and ``ignore_eos`` say; where the grammar
may end or go on, they decide as they do without one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from octavo.contracts.executor import Masks
from octavo.contracts.structured import Grammar, MaskRow, Matcher
from octavo.engine.grammars import Built
from octavo.scheduling.request import Request
from octavo.scheduling.step import Progress, Scheduled
from octavo.structured import StructuredOutputs

_log = logging.getLogger("octavo.engine")


class Ending(NamedTuple):
    """A request that ends here: ``stop`` because its form is complete, or ``error`` for a reason."""

    request: Request
    reason: str
    error: str | None = None


class Constraint:
    """One answer's grammar. Until ``after`` has been said, nothing is constrained."""

    __slots__ = ("_after", "_free_end", "_tail", "_tokens", "matcher")

    def __init__(self, built: Built, grammar: Grammar, wanted: StructuredOutputs, free_end: bool) -> None:
        """``free_end``: the end of text may come whenever the grammar allows it."""
        self.matcher: Matcher = grammar.matcher()
        self._tokens = built.vocabulary.tokens
        self._after, self._tail = wanted.after.encode(), b""
        self._free_end = free_end

    @property
    def active(self) -> bool:
        """Whether tokens are constrained already."""
        return not self._after

    def fits(self, tokens: Sequence[int]) -> int:
        """See :class:`octavo.scheduling.request.Constraint`. No draft goes past the point where the form begins."""
        if not self._free_end:
            return 0
        if not self._after:
            return self.matcher.fits(tokens)
        tail = self._tail
        for count, token in enumerate(tokens):
            tail = self._said(tail, token)
            if self._after in tail:
                return count
        return len(tokens)

    def constrained(self, tokens: Sequence[int]) -> Sequence[int]:
        """The answer goes on with ``tokens``; those of them that the grammar must hear of."""
        for count, token in enumerate(tokens):
            if not self._after:
                return tokens[count:]
            self._tail = self._said(self._tail, token)
            if self._after in self._tail:
                self._after = b""
        return ()

    def _said(self, tail: bytes, token: int) -> bytes:
        return tail[1 - len(self._after) :] + self._tokens[token] if len(self._after) > 1 else self._tokens[token]


def make_masks(built: Built, scheduled: Scheduled) -> tuple[Masks | None, list[Ending]]:
    """What the plan's masked rows may sample, and requests that end since nothing but their end is possible."""
    plan, rows, wanted, ends = scheduled.plan, list[int](), list[MaskRow](), list[tuple[int, Request]]()
    count = 0
    for index in plan.masked:
        request = scheduled.requests[index]
        constraint = request.constraint
        if request.finish_reason is not None or not isinstance(constraint, Constraint) or not constraint.active:
            continue
        drafts = plan.drafts.get(index, ())
        rows.append(index)
        wanted.append(MaskRow(constraint.matcher, count, drafts))
        if request.params.ignore_eos or len(request.output_ids) < request.params.min_tokens:
            ends.append((count, request))
        count += 1 + len(drafts)
    if not rows:
        return None, []
    bits = np.full((count, built.vocabulary.mask_width), -1, np.int32)
    try:
        built.backend.fill(wanted, bits)
    except Exception as error:
        _log.exception("the structured-outputs backend failed")
        reason = f"The structured-outputs backend failed: {type(error).__name__}: {error}"
        return None, [Ending(scheduled.requests[row], "error", reason) for row in rows]
    return Masks(rows, bits), [ending for at, request in ends for ending in _bar_end(built, request, bits[at])]


def _bar_end(built: Built, request: Request, mask: np.ndarray) -> Iterable[Ending]:
    """Clear the bits that would end an answer too early; nothing else being left, it is complete."""
    stops = _packed({*built.vocabulary.eos_ids, *request.stop_ids}, len(mask))
    if (mask & ~stops).any():
        mask &= ~stops
        return ()
    return (Ending(request, "stop"),)


def _packed(tokens: Iterable[int], width: int) -> np.ndarray:
    words = np.zeros(width, np.uint32)
    for token in tokens:
        if token < width * 32:
            words[token // 32] |= np.uint32(1 << (token % 32))
    return words.view(np.int32)


def follow(built: Built, progress: Sequence[Progress]) -> list[Ending]:
    """Tell the matchers what was sampled. The requests whose form is complete, or that can't go on."""
    told: list[tuple[Request, Constraint, Sequence[int]]] = []
    for item in progress:
        constraint = item.request.constraint
        if item.finish_reason is None and item.token_ids and isinstance(constraint, Constraint):
            tokens = constraint.constrained(item.token_ids)
            if tokens:
                told.append((item.request, constraint, tokens))
    if not told:
        return []
    try:
        errors = built.backend.accept([(constraint.matcher, tokens) for _, constraint, tokens in told])
    except Exception as error:
        _log.exception("the structured-outputs backend failed")
        errors = [f"The structured-outputs backend failed: {type(error).__name__}: {error}"] * len(told)
    endings = []
    for (request, constraint, _), problem in zip(told, errors, strict=True):
        if problem:
            endings.append(Ending(request, "error", problem))
        elif constraint.matcher.complete:
            endings.append(Ending(request, "stop"))
    return endings
