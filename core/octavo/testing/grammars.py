"""A structured-outputs backend without a library, over token ids, for tests of what surrounds one.

Its grammars go by names, given as ``regex``; :func:`follows` is their meaning.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from octavo.contracts.structured import MaskRow, Matcher, Vocabulary
from octavo.errors import RequestError
from octavo.structured import StructuredOutputs

EOS: Final = 63
VOCABULARY: Final = Vocabulary(
    tokens=[b"<%d>" % token for token in range(64)],
    special_ids=frozenset({EOS}),
    eos_ids=(EOS,),
    encode=lambda text: [int(part) for part in text.split()],
    serialized="",
)


def follows(name: str, said: Sequence[int]) -> set[int]:
    """The tokens that may follow ``said``.

    ``even``: even numbers; may end anywhere. ``five``: five numbers from 40 on. ``climb``: each no smaller than the
    last; may end from the third on. ``late``: two numbers below 10, whose end is found out late. ``fail``: numbers
    below 10; the third is too much for the backend. ``boom``: any, until the backend breaks after two. Others: any.
    """
    if EOS in said:
        return set()
    count = len(said)
    match name:
        case "even":
            return {*range(0, 62, 2), EOS}
        case "five":
            return {EOS} if count == 5 else set(range(40, 60))
        case "climb":
            return {*range(said[-1] if said else 0, EOS), *([EOS] if count >= 3 else [])}
        case "late" | "fail":
            return {EOS} if name == "late" and count == 2 else set(range(10))
        case "boom" if count == 2:
            raise ZeroDivisionError("a bug")
        case _:
            return set(range(EOS))


def allowed(name: str, said: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The same as bool [64]."""
    flags = np.zeros(64, np.bool_)
    flags[list(follows(name, said))] = True
    return flags


class NamedMatcher:
    """A :class:`octavo.contracts.structured.Matcher`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said: list[int] = []

    @property
    def complete(self) -> bool:
        """See the contract."""
        return self.name not in ("late", "boom") and follows(self.name, self.said) <= {EOS}

    def fits(self, tokens: Sequence[int]) -> int:
        """See the contract."""
        for count, token in enumerate(tokens):
            if token not in follows(self.name, [*self.said, *tokens[:count]]):
                return count
        return len(tokens)


class NamedGrammar:
    """A :class:`octavo.contracts.structured.Grammar`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def matcher(self) -> NamedMatcher:
        """See the contract."""
        return NamedMatcher(self.name)


class NamedGrammars:
    """A :class:`octavo.contracts.structured.StructuredBackend`. ``gate`` holds the grammar ``slow`` back until it
    is set; ``bad`` is refused. ``compiled`` lists what was asked for."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.compiled: list[str] = []

    def compile(self, constraint: StructuredOutputs) -> NamedGrammar:
        """See the contract."""
        name = constraint.regex or ""
        self.compiled.append(name)
        if name == "slow":
            self.gate.wait(20)
        if name == "bad":
            raise RequestError("structured_outputs.regex can't be used: bad.", param="structured_outputs.regex")
        return NamedGrammar(name)

    def fill(self, rows: Sequence[MaskRow], masks: np.ndarray) -> None:
        """See the contract."""
        for row in rows:
            matcher = _named(row.matcher)
            for place in range(1 + len(row.drafts)):
                if matcher.fits(row.drafts[:place]) == place:
                    flags = allowed(matcher.name, [*matcher.said, *row.drafts[:place]])
                    masks[row.at + place] = np.packbits(flags, bitorder="little").view(np.int32)

    def accept(self, tokens: Sequence[tuple[Matcher, Sequence[int]]]) -> list[str]:
        """See the contract. Raises :class:`ValueError` for tokens that a mask should have barred."""
        problems = []
        for matcher, ids in ((_named(matcher), ids) for matcher, ids in tokens):
            if matcher.fits(ids) != len(ids):
                raise ValueError(f"{matcher.name!r} was told {list(ids)} after {matcher.said}")
            matcher.said += ids
            problems.append("the grammar gives up" if matcher.name == "fail" and len(matcher.said) == 3 else "")
        return problems


def _named(matcher: Matcher) -> NamedMatcher:
    assert isinstance(matcher, NamedMatcher)
    return matcher
