"""Draft lengths follow what has been measured."""

from __future__ import annotations

from random import Random

import pytest

from octavo.scheduling.draft_length import Acceptance, StepTimes


def test_acceptance_is_measured_up_to_the_first_wrong_token() -> None:
    random, acceptance = Random(1), Acceptance()
    rates = []
    for _ in range(2000):
        accepted = next((place for place in range(5) if random.random() > 0.8), 5)
        acceptance.observe(5, accepted)
        rates.append(acceptance.rate)
    assert sum(rates) / len(rates) == pytest.approx(0.8, abs=0.03)


def test_longer_drafts_for_better_guesses_and_cheaper_tokens() -> None:
    acceptance = Acceptance()
    acceptance.rate = 0.8
    assert [acceptance.length(share, 10) for share in (0.0, 0.1, 0.3, 0.5, 0.79, 0.8, 1.0)] == [
        10,
        10,
        5,
        3,
        1,
        0,
        0,
    ]
    acceptance.rate = 0.99
    assert acceptance.length(0.5, 10) == 10
    acceptance.rate = 1.0
    assert acceptance.length(0.9, 7) == 7
    acceptance.rate = 0.0
    assert acceptance.length(0.0, 7) == 0


def test_a_request_whose_drafts_are_wrong_gets_none_and_then_another_chance() -> None:
    acceptance = Acceptance()
    for _ in range(40):
        acceptance.observe(3, 0)
    assert acceptance.length(0.1, 8) == 0
    rests = 0
    while not acceptance.length(0.1, 8):
        acceptance.rest()
        rests += 1
    assert 20 < rests < 200


def test_a_token_costs_little_where_the_device_waits_for_memory() -> None:
    times, random = StepTimes(), Random(2)
    assert 0 < times.share(1) < 0.2  # not measured yet
    for _ in range(200):
        tokens = random.randint(1, 8)
        times.observe(tokens, (0.030 + 0.001 * tokens) * random.uniform(0.97, 1.03))
    assert times.share(1) == pytest.approx(1 / 31, rel=0.2)


def test_a_busy_device_makes_drafts_not_worth_their_time() -> None:
    times, random = StepTimes(), Random(3)
    for _ in range(200):
        tokens = random.randint(64, 128)
        times.observe(tokens, 0.001 * tokens)
    assert times.share(64) > 0.9


def test_steps_of_one_size_tell_nothing_and_a_hiccup_little() -> None:
    times = StepTimes()
    for _ in range(50):
        times.observe(1, 0.03)
    before = times.share(1)
    assert 0 < before < 0.2
    for tokens in (3, 2, 5, 1, 4, 2, 6, 1, 3, 2) * 5:
        times.observe(tokens, 0.03 + 0.001 * tokens)
    times.observe(8, 30.0)
    assert times.share(1) < 0.4
