"""Look-up of n-grams: the index against a plain search, and its answers."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from octavo.contracts.proposer import DraftRow
from octavo_speculative.lookup import NgramProposer
from octavo_speculative.ngram import NgramOptions, octavo_proposers


def draft_of(proposer: NgramProposer, row: int, fresh: list[int], limit: int) -> list[int]:
    draft = proposer.propose([DraftRow(row, fresh, limit)])
    assert draft.tokens.shape[0] == 1
    return draft.tokens[0, : draft.lengths[0]].tolist()


def plain_search(tokens: list[int], shortest: int, longest: int) -> int:
    """The place behind the longest match of the end, the latest of equals; -1 without any."""
    for size in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for place in range(len(tokens) - 1, size - 1, -1):
            if tokens[place - size : place] == tokens[-size:]:
                return place
    return -1


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 4), (2, 3), (3, 8)])
def test_the_index_finds_what_a_plain_search_finds(shortest: int, longest: int) -> None:
    random = Random(shortest * 10 + longest)
    for _ in range(150):
        tokens = [random.randrange(12) for _ in range(random.randint(1, 30))]
        proposer = NgramProposer(3, shortest, longest)
        proposer.reserve(0, tokens)
        fresh: list[int] = []
        for _ in range(6):
            place = plain_search(tokens, shortest, longest)
            found = draft_of(proposer, 0, fresh, 3)
            if place < 0:
                assert found == []
            else:
                assert found[: len(tokens) - place] == tokens[place : place + 3]
            fresh = [random.randrange(12) for _ in range(random.randint(1, 4))]
            tokens += fresh


def test_what_followed_is_proposed() -> None:
    proposer = NgramProposer(4, 2, 8)
    proposer.reserve(3, [1, 2, 3, 4, 5, 6, 7, 9, 1, 2])
    assert draft_of(proposer, 3, [], 4) == [3, 4, 5, 6]
    assert draft_of(proposer, 3, [], 2) == [3, 4]
    assert draft_of(proposer, 3, [3, 4], 3) == [5, 6, 7]
    assert draft_of(proposer, 3, [8, 8], 3) == []


def test_the_longer_match_wins_over_the_later() -> None:
    proposer = NgramProposer(1, 2, 8)
    proposer.reserve(0, [1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3])
    assert draft_of(proposer, 0, [], 1) == [50]


def test_a_short_period_fills_a_long_draft() -> None:
    proposer = NgramProposer(7, 2, 4)
    proposer.reserve(0, [1, 2, 3, 1, 2, 3, 1, 2])
    assert draft_of(proposer, 0, [], 7) == [3, 1, 2, 3, 1, 2, 3]


def test_rows_are_apart_and_reset() -> None:
    proposer = NgramProposer(2, 2, 4)
    proposer.reserve(0, [1, 2, 3, 1, 2])
    proposer.reserve(1, [4, 5, 6, 7])
    draft = proposer.propose([DraftRow(1, [], 2), DraftRow(0, [], 2)])
    assert draft.lengths.tolist() == [0, 2]
    assert draft.tokens[1].tolist() == [3, 1]
    proposer.release(0)
    proposer.reserve(0, [8, 9])
    assert draft_of(proposer, 0, [], 2) == []


def test_a_draft_costs_microseconds_whatever_the_length_of_the_request() -> None:
    random = Random(5)
    proposer = NgramProposer(10, 2, 8)
    for row in range(16):
        proposer.reserve(row, [random.randrange(50) for _ in range(20_000)])
    rows = [DraftRow(row, [1], 10) for row in range(16)]
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        proposer.propose(rows)
        best = min(best, time.perf_counter() - start)
    assert best / len(rows) < 100e-6


@pytest.mark.parametrize("options", [{"tokens": 0}, {"shortest": 3, "longest": 2}, {"depth": 4}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NgramOptions(**options)


def test_the_record_builds_it() -> None:
    (record,) = octavo_proposers()
    proposer = record.build(None, record.options(tokens=3))
    assert proposer.max_tokens == 3
