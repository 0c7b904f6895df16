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


def test_others_start_beside_a_flood_at_once():
    engine = Engine(slots=2)
    flood = [engine.ask(1, 6) for _ in range(30)]
    others = [engine.ask(2, 3), engine.ask(0, 3)]
    engine.step()
    assert [request.row >= 0 for request in others] == [True, True]
    assert [request.row >= 0 for request in flood] == [True] * 6 + [False] * 24  # no row is left empty
    engine.finish()
    assert all(request.output_ids == expected(request) for request in (*flood, *others))


def test_who_comes_behind_a_flood_gets_the_next_row():
    for late_key, flood_key in ((2, 1), (0, 1), (1, 0)):
        engine = Engine(slots=2)
        flood = [engine.ask(flood_key, 4 + 5 * at) for at in range(30)]
        engine.step()
        late = engine.ask(late_key, 3)
        while late.row < 0:
            engine.step()
        assert sum(request.finish_reason is not None for request in flood) == 1
        engine.finish()


def test_a_priority_comes_before_shares():
    engine = Engine(slots=2)
    flood = [engine.ask(1, 6) for _ in range(10)]
    late = engine.ask(2, 3)
    late.priority = 1
    engine.step()
    assert [request.row >= 0 for request in (*flood, late)] == [True] * 8 + [False] * 3


def test_an_adapter_that_is_not_in_memory_holds_nobody_up():
    engine = Engine(slots=2)
    engine.slots.absent.add(1)
    missing, other, base = engine.ask(1, 3), engine.ask(2, 3), engine.ask(0, 3)
    engine.step(PATIENCE + 10)
    assert (missing.row, other.finish_reason, base.finish_reason) == (-1, "length", "length")
    assert list(engine.slots.wanted) == [1]
    late = engine.ask(3, 3)
    engine.step()
    assert late.row >= 0
    engine.slots.absent.discard(1)
    engine.finish()
    assert missing.output_ids == expected(missing)
    # On the device it needs no copy on the host, until its slot was given to another.
    engine.slots.absent.add(1)
    again = engine.ask(1, 2)
    engine.finish()
    assert again.output_ids == expected(again)


def test_requests_of_an_adapter_that_is_lost_end_with_an_error():
    engine = Engine(slots=2)
    engine.slots.absent.add(1)
    missing, other = [engine.ask(1, 3) for _ in range(2)], engine.ask(2, 3)
    engine.step()
    failed = engine.scheduler.fail_adapter(1, "gone")
    assert [(item.request, item.finish_reason, item.error) for item in failed] == [
        (request, "error", "gone") for request in missing
    ]
    engine.finish()
    assert other.output_ids == expected(other)
    assert engine.slots.users(1) == 0
