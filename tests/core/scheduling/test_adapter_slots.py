"""Device slots of adapters: who gets one, who waits, and for how long."""

from __future__ import annotations

from collections import Counter

import pytest

from octavo.cache.blocks import BlockPool, EngineInvariantError
from octavo.params import SamplingParams
from octavo.scheduling.adapters import PATIENCE, AdapterSlots
from octavo.scheduling.policies import FcfsPolicy
from octavo.scheduling.request import Request
from octavo.scheduling.scheduler import Scheduler
from octavo.testing.simulated import SimulatedExecutor, expected_answer

GREEDY = SamplingParams(temperature=0.0)


class Engine:
    """A scheduler with two slots and a simulated device, stepped by hand."""

    def __init__(self, slots: int = 2, rows: int = 8) -> None:
        self.slots = AdapterSlots(slots)
        self.scheduler = Scheduler(
            pool=BlockPool(400),
            policy=FcfsPolicy(),
            policy_name="fcfs",
            block_size=4,
            max_sequences=rows,
            max_batch_tokens=64,
            max_length=1000,
            max_queue=1000,
            prefix_caching=True,
            adapters=self.slots,
        )
        self.device = SimulatedExecutor(num_blocks=400, block_size=4)
        self.count = 0

    def ask(self, adapter: int, tokens: int) -> Request:
        self.count += 1
        request = Request(
            id=self.count,
            prompt_ids=[1, 2, 3],
            params=GREEDY,
            max_tokens=tokens,
            root=b"%d" % adapter,
            adapter_key=adapter,
            arrival=float(self.count),
        )
        self.scheduler.add(request)
        return request

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            scheduled = self.scheduler.schedule()
            if scheduled is not None:
                self.scheduler.update(scheduled, self.device.launch(scheduled.plan).result())
            self.scheduler.check()

    def finish(self) -> None:
        while self.scheduler.has_work:
            self.step()


def expected(request: Request) -> list[int]:
    return expected_answer(
        request.prompt_ids, request.params, max_tokens=request.max_tokens, adapter=request.adapter_key
    )


def test_whose_adapter_has_no_slot_is_passed_over():
    engine = Engine()
    first, second = engine.ask(1, 6), engine.ask(2, 20)
    third, base, fourth = engine.ask(3, 5), engine.ask(0, 5), engine.ask(1, 5)
    engine.step()
    assert [request.row >= 0 for request in (first, second, third, base, fourth)] == [True, True, False, True, True]
    engine.step(6)
    assert first.finish_reason == "length"
    assert third.row >= 0
    assert third.adapter_slot == 1  # what the first and the fourth had
    engine.finish()
    assert all(request.output_ids == expected(request) for request in (first, second, third, base, fourth))


def test_the_least_recently_used_slot_is_taken():
    engine = Engine()
    for key in (1, 2, 1, 3):
        engine.ask(key, 1)
        engine.finish()
    assert list(engine.slots._slots) == [1, 3]


def test_a_flood_of_one_adapter_does_not_starve_the_others():
    engine = Engine(slots=1)
    engine.ask(1, 10)
    engine.step()
    late = engine.ask(2, 3)
    waited = 0
    while late.finish_reason is None:
        if waited % 3 == 0:
            engine.ask(1, 10)
        engine.step()
        waited += 1
        assert waited < PATIENCE + 40
    assert waited > PATIENCE  # until then, those behind it went on
    assert late.output_ids == expected(late)
    engine.finish()


def test_a_round_that_came_to_nothing_closes_nothing():
    slots = AdapterSlots(1)
    slots.enter(1), slots.enter(2)
    slots.begin(1, 64)
    assert slots.admits(1)
    slots.acquire(1)
    slots.begin(2, 64)
    assert not slots.admits(2)
    slots.begin(2 + PATIENCE, 64)
    assert not slots.admits(2)
    assert not slots.admits(1)  # behind the one that has waited too long
    assert slots.admits(0)
    slots.release(1)
    slots.begin(2 + PATIENCE, 64)
    assert slots.admits(2)


def test_a_retired_adapter_is_dropped_with_its_last_request():
    dropped: list[int] = []
    engine = Engine()
    engine.slots.on_drop = dropped.append
    running, waiting = engine.ask(1, 8), engine.ask(1, 8)
    engine.step(2)
    engine.slots.retire(1)
    engine.scheduler.abort(waiting.id)
    assert dropped == []
    engine.finish()
    assert dropped == [1]
    assert len(engine.slots) == 0
    assert running.output_ids == expected(running)
    engine.slots.retire(7)  # never used
    assert dropped == [1, 7]


def test_pinned_adapters_keep_their_slots():
    engine = Engine()
    engine.slots.pin(1)
    assert not engine.slots.can_pin()
    with pytest.raises(EngineInvariantError, match="pinned already"):
        engine.slots.pin(2)
    for key in (1, 2, 3, 4):
        engine.ask(key, 1)
        engine.finish()
    assert list(engine.slots._slots) == [1, 4]
    engine.slots.retire(1)
    assert engine.slots.can_pin()


def test_books_that_do_not_balance_are_found():
    slots = AdapterSlots(2)
    slots.enter(1)
    slots.acquire(1)
    slots.check(Counter({1: 1}), Counter({1: 1}))
    for running, unfinished in (({}, {1: 1}), ({1: 1}, {}), ({1: 2}, {1: 2})):
        with pytest.raises(EngineInvariantError, match="Adapters are used by"):
            slots.check(Counter(running), Counter(unfinished))
