"""Draft lengths follow what has been measured."""

from __future__ import annotations

from random import Random

import pytest

from octavo.scheduling.draft_length import Acceptance, GuessLength, StepTimes


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


def settled(cost: float, step: float, rates: list[float], rounds: int = 400) -> list[int]:
    """Lengths chosen at the end, where a step takes ``step`` seconds and each guess ``cost`` more."""
    random, lengths, chosen = Random(4), GuessLength(), []
    for _ in range(rounds):
        length = lengths.choose(rates, 7)
        lengths.observe(len(rates), length, (step + cost * length) * random.uniform(0.97, 1.03))
        chosen.append(length)
    return chosen[-100:]


def best_length(cost: float, step: float, rate: float) -> int:
    return max(range(8), key=lambda k: sum(rate**i for i in range(k + 1)) / (step + cost * k))


@pytest.mark.parametrize(("cost", "rate"), [(0.05, 0.8), (0.1, 0.7), (0.2, 0.8), (0.3, 0.5), (0.02, 0.9)])
def test_guesses_are_about_as_long_as_pays(cost: float, rate: float) -> None:
    chosen = settled(cost, 1.0, [rate])
    best = best_length(cost, 1.0, rate)
    often = max(set(chosen), key=chosen.count)
    speeds = [sum(rate**i for i in range(k + 1)) / (1 + cost * k) for k in (often, best)]
    assert speeds[0] > 0.97 * speeds[1]


def test_guessing_ceases_where_it_costs_more_than_it_brings() -> None:
    chosen = settled(0.8, 1.0, [0.6] * 64)
    assert chosen.count(0) > 95


def test_it_is_tried_again_rarely() -> None:
    chosen = settled(0.8, 1.0, [0.6] * 64, rounds=3000)
    lengths, random = GuessLength(), Random(1)
    tried = 0
    for _ in range(3000):
        length = lengths.choose([0.6] * 64, 7)
        lengths.observe(64, length, (1 + 0.8 * length) * random.uniform(0.97, 1.03))
        tried += length > 0
    assert 0 < tried < 120
    assert chosen.count(0) > 90


def test_costs_of_one_batch_size_say_nothing_of_another() -> None:
    lengths = GuessLength()
    for _ in range(200):
        length = lengths.choose([0.7] * 64, 7)
        lengths.observe(64, length, 1.0 + 0.9 * length)
    assert lengths.choose([0.7], 7) > 0
