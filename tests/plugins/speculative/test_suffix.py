"""Suffix decoding: the index against a plain search, counts, earlier answers, bounded memory."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

import pytest
from pydantic import ValidationError

from octavo.contracts.proposer import DraftRow
from octavo_speculative.suffix import SuffixOptions, octavo_proposers
from octavo_speculative.suffix_drafts import SuffixProposer
from octavo_speculative.suffix_index import GRAM, SuffixIndex, likeliest


def draft_of(proposer: SuffixProposer, row: int, fresh: list[int], limit: int) -> list[int]:
    draft = proposer.propose([DraftRow(row, fresh, limit)])
    return draft.tokens[0, : draft.lengths[0]].tolist()


def make(tokens: int = 8, depth: int = 8, factor: float = 4.0, least: float = 0.1, kept: int = 1000):
    return SuffixProposer(tokens, depth, factor, least, kept)


def plain_search(sequences: list[list[int]], tail: list[int], most: int) -> tuple[int, Counter[tuple[int, ...]]]:
    """The longest match's size, and what stands behind each place of it (up to 3 tokens)."""
    for size in range(min(most, len(tail)), GRAM - 1, -1):
        found: Counter[tuple[int, ...]] = Counter()
        for tokens in sequences:
            for at in range(size, len(tokens)):
                if tokens[at - size : at] == tail[-size:]:
                    found[tuple(tokens[at : at + 3])] += 1
        if found:
            return size, found
    return 0, Counter()


def test_the_index_finds_what_a_plain_search_finds() -> None:
    random = Random(1)
    for _ in range(100):
        index, sequences = SuffixIndex(), []
        for _ in range(random.randint(1, 3)):
            tokens = [random.randrange(8) for _ in range(random.randint(1, 20))]
            number = index.begin()
            index.add(number, tokens[:7])
            index.add(number, tokens[7:])
            sequences.append(tokens)
        tail = [random.randrange(8) for _ in range(random.randint(1, 6))]
        size, places = index.longest(tail, 4)
        expected, behind = plain_search(sequences, tail, 4)
        assert size == expected
        assert Counter(tuple(tokens[at : at + 3]) for tokens, at in places) == behind


def test_the_most_frequent_continuation_is_followed() -> None:
    places = [([1, 2, 3], 0), ([1, 2, 4], 0), ([1, 5, 5], 0), ([9], 0)]
    assert likeliest(places, 8, 0.2) == ([1, 2, 3], 0.75 + 0.5 + 0.25)
    assert likeliest(places, 8, 0.3) == ([1, 2], 0.75 + 0.5)
    assert likeliest(places, 1, 0.3) == ([1], 0.75)
    assert likeliest([], 8, 0.3) == ([], 0.0)


def test_a_request_repeats_itself() -> None:
    proposer = make()
    proposer.reserve(0, [1, 2, 3, 4, 5, 6, 7, 1, 2])
    assert draft_of(proposer, 0, [], 4) == [3, 4, 5, 6]
    assert draft_of(proposer, 0, [3, 4], 2) == [5, 6]
    assert draft_of(proposer, 0, [8, 8], 2) == []


def test_longer_matches_make_longer_drafts() -> None:
    proposer = make(factor=1.0)
    proposer.reserve(0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2])
    assert draft_of(proposer, 0, [], 8) == [3, 4]
    assert draft_of(proposer, 0, [3, 4], 8) == [5, 6, 7, 8]


def test_earlier_answers_are_remembered() -> None:
    proposer = make()
    proposer.reserve(0, [50, 51, 52])
    draft_of(proposer, 0, [60, 61, 62, 63, 64], 4)
    proposer.release(0)
    proposer.reserve(0, [70, 51, 52, 60])
    assert draft_of(proposer, 0, [61], 8) == [62, 63, 64]
    alone = make(kept=0)
    alone.reserve(0, [50, 51])
    draft_of(alone, 0, [60, 61, 62], 4)
    alone.release(0)
    alone.reserve(0, [51, 60, 61])
    assert draft_of(alone, 0, [], 4) == []


def test_the_oldest_answers_are_forgotten() -> None:
    index = SuffixIndex(limit=20)
    for start in range(0, 100, 10):
        index.add(index.begin(), list(range(start, start + 8)))
    assert index.size <= 20
    assert index.longest([1, 2], 4)[0] == 0
    assert index.longest([91, 92], 4)[0] == 2
    assert all(places for places in index._behind.values())


def test_a_draft_costs_little_whatever_is_remembered() -> None:
    random = Random(5)
    proposer = make(kept=1_000_000)
    for _ in range(40):
        proposer.reserve(0, [1, 2])
        draft_of(proposer, 0, [random.randrange(50) for _ in range(2000)], 8)
        proposer.release(0)
    for row in range(8):
        proposer.reserve(row, [random.randrange(50) for _ in range(4000)])
    rows = [DraftRow(row, [1], 10) for row in range(8)]
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        proposer.propose(rows)
        best = min(best, time.perf_counter() - start)
    assert best / len(rows) < 500e-6


@pytest.mark.parametrize("options", [{"tokens": 0}, {"depth": 1}, {"least": 0}, {"factor": 0}, {"branches": 2}])
def test_options_that_make_no_sense(options) -> None:
    with pytest.raises(ValidationError):
        SuffixOptions(**options)


def test_the_record_builds_it() -> None:
    (record,) = octavo_proposers()
    assert record.build(None, record.options(tokens=3)).max_tokens == 3
