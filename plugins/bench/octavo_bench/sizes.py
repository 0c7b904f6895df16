"""How long prompts and answers are, and prompts of such lengths made of random token ids."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octavo.errors import ConfigError

_SPECIAL_BELOW: Final = 100  # tokenizers keep special tokens at both ends of their vocabulary
_SPECIAL_ABOVE: Final = 300
_SMALL_VOCABULARY: Final = 1000


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths between ``low`` and ``high`` tokens, both included, each as likely."""

    low: int
    high: int

    def draw(self, dice: random.Random) -> int:
        """One length."""
        return dice.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"uniform:{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class Size:
    """A request to come: tokens of prompt and answer, and the second at which a trace has it arrive."""

    input: int
    output: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """A request: token ids (or text) and how many tokens to answer with."""

    prompt: list[int] | str
    output: int
    at: float = 0.0


def parse_lengths(text: str) -> Lengths:
    """``512`` or ``uniform:100-1024``. Raises :class:`ConfigError`."""
    found = re.fullmatch(r"(\d+)|uniform:(\d+)-(\d+)", text.strip())
    if found is None:
        raise ConfigError(f"a length should be a number or like uniform:100-1024, not {text!r}.")
    low = int(found[1] or found[2])
    high = int(found[1] or found[3])
    if not 1 <= low <= high:
        raise ConfigError(f"lengths {text!r} should be at least 1 and not go down.")
    return Lengths(low, high)


def draw_sizes(count: int, input: Lengths, output: Lengths, seed: int) -> list[Size]:
    """``count`` sizes; equal for equal seeds, so that repetitions do the same work."""
    dice = random.Random(seed)
    return [Size(input.draw(dice), output.draw(dice)) for _ in range(count)]


def id_range(vocab_size: int) -> tuple[int, int]:
    """First token id to draw and the one after the last, clear of special tokens where there is room for that."""
    if vocab_size < _SMALL_VOCABULARY:
        return 0, vocab_size
    return _SPECIAL_BELOW, vocab_size - _SPECIAL_ABOVE


def random_jobs(sizes: Sequence[Size], vocab_size: int, seed: int, prefix: int = 0) -> list[Job]:
    """Prompts of these sizes, each with the same ``prefix`` tokens before its own; fresh for each seed."""
    dice = random.Random(seed)
    low, high = id_range(vocab_size)

    def ids(count: int) -> list[int]:
        return [dice.randrange(low, high) for _ in range(count)]

    shared = ids(prefix)
    return [Job(shared + ids(size.input), size.output, size.at) for size in sizes]
