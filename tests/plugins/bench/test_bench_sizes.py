"""Lengths and prompts: what is drawn, and that it can be drawn again."""

from __future__ import annotations

import random

import pytest

from octavo.errors import ConfigError
from octavo_bench.sizes import Lengths, Size, draw_sizes, id_range, parse_lengths, random_jobs


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("512", Lengths(512, 512)), ("uniform:100-1024", Lengths(100, 1024)), (" 1 ", Lengths(1, 1))],
)
def test_lengths_are_read(text: str, lengths: Lengths) -> None:
    assert parse_lengths(text) == lengths
    assert parse_lengths(str(lengths)) == lengths


@pytest.mark.parametrize("text", ["", "0", "-3", "uniform:9-3", "uniform:0-3", "normal:3-9", "1.5"])
def test_wrong_lengths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="length"):
        parse_lengths(text)


def test_prompts_are_those_of_the_seed() -> None:
    """The rule by which other engines' prompts were made: equal seeds, equal ids."""
    jobs = random_jobs([Size(4, 9), Size(3, 9)], 128256, seed=5)
    dice = random.Random(5)
    expected = [[dice.randrange(100, 128256 - 300) for _ in range(count)] for count in (4, 3)]
    assert [job.prompt for job in jobs] == expected
    assert random_jobs([Size(4, 9)], 128256, seed=6)[0].prompt != expected[0]


def test_ids_stay_in_the_vocabulary() -> None:
    assert id_range(151936) == (100, 151636)
    assert id_range(320) == (0, 320)
    ids = {token for job in random_jobs([Size(500, 1)] * 4, 320, 1) for token in job.prompt}
    assert min(ids) >= 0
    assert max(ids) < 320


def test_a_shared_prefix_is_shared_and_what_follows_is_not() -> None:
    jobs = random_jobs([Size(8, 1)] * 3, 5000, seed=2, prefix=20)
    assert {len(job.prompt) for job in jobs} == {28}
    assert len({tuple(job.prompt[:20]) for job in jobs}) == 1
    assert len({tuple(job.prompt[20:]) for job in jobs}) == 3


def test_sizes_are_the_same_for_every_repetition() -> None:
    drawn = draw_sizes(50, Lengths(3, 9), Lengths(2, 4), 1)
    assert drawn == draw_sizes(50, Lengths(3, 9), Lengths(2, 4), 1)
    assert {size.input for size in drawn} == set(range(3, 10))
    assert {size.output for size in drawn} == {2, 3, 4}
