"""The structured-outputs slot: which tokens may come next, so that an answer has the form that was asked for.

A backend turns a :class:`octavo.structured.StructuredOutputs` into a *grammar* (slow, in a thread, shared by all
requests that ask for the same) and a grammar into *matchers*, one an answer, which follow its tokens. Before a step
is sampled the core has the backend fill one packed mask for each position of a row with a matcher; what the mask
bars can't be sampled. When that happens, who needs a mask and what happens at the end of an answer are the core's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

    from octavo.structured import StructuredOutputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokens of a model. ``tokens`` are bytes by id (they may be part of a character; empty where an id has no
    token), ``special_ids`` those that are no text, ``eos_ids`` those that end one. ``encode`` gives the ids of a
    text without adding any. ``serialized`` is the tokenizer in the JSON of the ``tokenizers`` library."""

    tokens: Sequence[bytes]
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]
    encode: Callable[[str], list[int]]
    serialized: str

    @property
    def mask_width(self) -> int:
        """int32 words of a packed mask: bit ``i % 32`` of word ``i // 32`` is token ``i``."""
        return -(-len(self.tokens) // 32)


class Matcher(Protocol):
    """One answer's place in a grammar."""

    @property
    def complete(self) -> bool:
        """Whether nothing but the end of text may follow. May be found out late: then false here, while the mask
        allows an end of text only."""
        ...

    def fits(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` may follow, the first ones. Changes nothing."""
        ...


class Grammar(Protocol):
    """A compiled constraint. Used by many requests at once."""

    def matcher(self) -> Matcher:
        """A new matcher, at the beginning. Quick: called on the engine's thread."""
        ...


class MaskRow(NamedTuple):
    """A matcher, the row of the masks that is its next position's, and drafted tokens: what may follow each of them
    goes into the rows after that."""

    matcher: Matcher
    at: int
    drafts: Sequence[int]


class StructuredBackend(Protocol):
    """Compiles and matches. ``compile`` runs in threads of its own, all else in the engine's, between two steps."""

    def compile(self, constraint: StructuredOutputs) -> Grammar:
        """Raises :class:`octavo.errors.RequestError` saying what is wrong with the constraint. Time and memory must
        be bounded: a call that takes too long is given up, but can't be stopped."""
        ...

    def fill(self, rows: Sequence[MaskRow], masks: np.ndarray) -> None:
        """Fill ``masks`` int32 [n, mask_width], which comes with every bit set. A mask allows the end of text where
        the grammar may end. Behind a drafted token that does not fit, and behind the end, rows stay as they are."""
        ...

    def accept(self, tokens: Sequence[tuple[Matcher, Sequence[int]]]) -> list[str]:
        """Each answer goes on with its tokens (an end of text may be the last). Per answer: empty, or why it can't
        go on, such as a limit of the backend's; it then ends with that error."""
        ...
