"""A structured-outputs backend for tests, over token ids: grammars by name, given as ``regex``."""

from __future__ import annotations

import threading

import numpy as np

from octavo.contracts.structured import Vocabulary
from octavo.errors import RequestError

EOS = 63
VOCABULARY = Vocabulary(
    tokens=[b"<%d>" % token for token in range(64)],
    special_ids=frozenset({EOS}),
    eos_ids=(EOS,),
    encode=lambda text: [int(part) for part in text.split()],
    serialized="",
)


def follows(name, said):
    """The set of tokens that may follow, as the grammar ``name`` has it."""
    if EOS in said:
        return set()
    if name == "even":
        return {*range(0, 62, 2), EOS}
    if name == "five":  # five tokens from 40 on, then the end
        return {EOS} if len(said) == 5 else set(range(40, 60))
    if name == "climb":  # each no smaller than the last; may end from 3 tokens on
        return {*range(said[-1] if said else 0, 63), *([EOS] if len(said) >= 3 else [])}
    if name in ("fail", "late"):
        return {EOS} if name == "late" and len(said) == 2 else set(range(10))
    if name == "boom" and len(said) == 2:
        raise ZeroDivisionError("a bug")
    return set(range(63))


def flags(name, said):
    found = np.zeros(64, bool)
    found[list(follows(name, said))] = True
    return found


class Matcher:
    def __init__(self, name):
        self.name, self.said = name, []

    @property
    def complete(self):
        return self.name != "late" and self.name != "boom" and follows(self.name, self.said) <= {EOS}

    def fits(self, tokens):
        for count, token in enumerate(tokens):
            if token not in follows(self.name, [*self.said, *tokens[:count]]):
                return count
        return len(tokens)


class Grammar:
    def __init__(self, name):
        self.name = name

    def matcher(self):
        return Matcher(self.name)


class Backend:
    """``gate`` holds grammars named "slow" back until it is set."""

    def __init__(self):
        self.gate = threading.Event()
        self.compiled = []

    def compile(self, constraint):
        name = constraint.regex
        self.compiled.append(name)
        if name == "slow":
            self.gate.wait(20)
        if name == "bad":
            raise RequestError("structured_outputs.regex can't be used: it is bad.", param="structured_outputs.regex")
        return Grammar(name)

    def fill(self, rows, masks):
        for row in rows:
            for place in range(1 + len(row.drafts)):
                said = [*row.matcher.said, *row.drafts[:place]]
                if row.matcher.fits(row.drafts[:place]) == place:
                    packed = np.packbits(flags(row.matcher.name, said), bitorder="little")
                    masks[row.at + place] = packed.view(np.int32)

    def accept(self, tokens):
        problems = []
        for matcher, ids in tokens:
            assert matcher.fits(ids) == len(ids), (matcher.name, matcher.said, ids)
            matcher.said += ids
            problems.append("the grammar gives up" if matcher.name == "fail" and len(matcher.said) == 3 else "")
        return problems
