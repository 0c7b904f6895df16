"""How requests end, and what comes back with their tokens. Scenes by hand; blocks hold 4 tokens."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.cache.blocks import EngineInvariantError
from octavo.contracts.executor import RowLogprobs, StepResult
from octavo.params import SamplingParams


@pytest.mark.parametrize(
    ("fields", "token", "reason", "stop_reason"),
    [
        ({"stop_ids": {9}, "eos_ids": {9}}, 9, "stop", None),
        ({"stop_ids": {8, 9}, "eos_ids": {9}}, 8, "stop", 8),
        ({"stop_ids": {9}, "eos_ids": {9}, "params": SamplingParams(ignore_eos=True)}, 9, "stop", 9),
        ({"stop_ids": {9}, "max_tokens": 1}, 9, "stop", 9),
        ({"stop_ids": {9}, "max_tokens": 1}, 5, "length", None),
        ({"stop_ids": {9}, "params": SamplingParams(min_tokens=2)}, 9, None, None),
        ({"stop_ids": {9}, "params": SamplingParams(min_tokens=1)}, 9, "stop", 9),
        ({"prompt": 999}, 5, "length", None),
        ({}, 9, None, None),
    ],
)
def test_why_a_request_ends(make_scheduler, make_request, finish_step, fields, token, reason, stop_reason):
    fields = {name: frozenset(value) if isinstance(value, set) else value for name, value in fields.items()}
    scheduler = make_scheduler(blocks=300, max_batch_tokens=1000)
    request = make_request(**fields)
    scheduler.add(request)
    (progress,) = finish_step(scheduler, scheduler.schedule(), token)
    assert (progress.request, progress.token_ids, progress.first) == (request, [token], True)
    assert (progress.finish_reason, request.finish_reason, request.stop_reason) == (reason, reason, stop_reason)
    assert scheduler.has_work == (reason is None)
    assert (request.blocks == []) == (reason is not None)


def test_ended_rows_travel_with_the_next_plan_that_has_rows(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    scheduler.add(make_request(max_tokens=1))
    assert step(scheduler).plan.ends == []
    assert scheduler.schedule() is None
    scheduler.add(make_request())
    plan = step(scheduler).plan
    assert (plan.ends, [start.row for start in plan.starts]) == ([0], [0])
    assert step(scheduler).plan.ends == []


def test_abort_wherever_the_request_is(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler(max_sequences=2)
    flying, running, waiting = (make_request() for _ in range(3))
    for request in (flying, running, waiting):
        scheduler.add(request)
    scheduled = scheduler.schedule()
    assert scheduler.abort(waiting.id) is waiting
    assert scheduler.abort(flying.id) is flying
    assert scheduler.abort(flying.id) is None
    assert scheduler.abort(12345) is None
    scheduler.check()
    assert [progress.request for progress in finish_step(scheduler, scheduled)] == [running]
    assert scheduler.abort(running.id) is running
    assert [r.finish_reason for r in (flying, running, waiting)] == ["abort"] * 3
    assert flying.output_ids == []
    assert not scheduler.has_work
    assert scheduler.stats().used_blocks == 0


def test_a_failed_row_ends_alone_and_leaves_nothing_in_the_prefix_cache(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    prompt = list(range(100, 110))
    bad, good = make_request(prompt=prompt), make_request()
    scheduler.add(bad)
    scheduler.add(good)
    progress = finish_step(scheduler, scheduler.schedule(), failed={0: "not finite"})
    assert [(p.request, p.finish_reason, p.error, p.token_ids) for p in progress] == [
        (bad, "error", "not finite", []),
        (good, None, None, [7]),
    ]
    again = make_request(prompt=prompt)
    scheduler.add(again)
    scheduler.schedule()
    assert again.cached_tokens == 0


def test_results_that_belong_to_another_step_are_refused(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    scheduler.add(make_request())
    scheduled = scheduler.schedule()
    with pytest.raises(EngineInvariantError, match="result of step 5 is not that of step 1"):
        scheduler.update(scheduled, StepResult(5, np.array([7]), {}, {}, {}))
    with pytest.raises(EngineInvariantError, match="no token came back"):
        finish_step(scheduler, scheduled, token=-1)


def test_an_id_is_used_once(make_scheduler, make_request):
    scheduler = make_scheduler()
    request = make_request()
    scheduler.add(request)
    with pytest.raises(EngineInvariantError, match="Request id 0 is in use"):
        scheduler.add(request)


def scores(*tokens):
    return [RowLogprobs(token, -1.0, 1, [token], [-1.0]) for token in tokens]


def test_logprobs_come_with_their_token(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    scheduler.add(make_request(params=SamplingParams(logprobs=1)))
    (entry,) = scores(7)
    (progress,) = finish_step(scheduler, scheduler.schedule(), logprobs={0: [entry]})
    assert progress.logprobs == [entry]
    assert progress.prompt_logprobs is None


def test_prompt_logprobs_come_once_whatever_is_recomputed(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler(max_batch_tokens=5)
    request = make_request(prompt=8, params=SamplingParams(prompt_logprobs=0))
    scheduler.add(request)
    one = scores(1, 2, 3, 4, 5)
    (progress,) = finish_step(scheduler, scheduler.schedule(), prompt_logprobs={0: one})
    assert (progress.token_ids, progress.prompt_logprobs, progress.first) == ([], one, False)
    scheduler._ledger.preempt(request)
    assert finish_step(scheduler, scheduler.schedule(), prompt_logprobs={0: one}) == []
    two = scores(6, 7)
    (progress,) = finish_step(scheduler, scheduler.schedule(), prompt_logprobs={0: two})
    assert (progress.token_ids, progress.prompt_logprobs, progress.first) == ([7], two, True)


def test_stats_count(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=10, max_sequences=1)
    for _ in range(2):
        scheduler.add(make_request(prompt=6, max_tokens=3))
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.steps) == (1, 1, 1)
    assert (stats.total_blocks, stats.used_blocks, stats.cached_blocks) == (10, 2, 0)
    assert (stats.prompt_tokens, stats.generated_tokens) == (6, 1)
    while scheduler.has_work:
        step(scheduler)
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
    assert (stats.prompt_tokens, stats.generated_tokens, stats.steps) == (12, 6, 6)
    assert stats.cached_blocks == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda request: request.blocks.pop(), "Block 2 has 1 references, but stands in 0"),
        (lambda request: setattr(request, "row", 3), "Rows in use and free rows"),
        (lambda request: setattr(request, "known", 9), "Request 0 has 7 tokens and 0 pending, but 9 known"),
        (lambda request: setattr(request, "computed", 2), "Request 0 has 2 blocks for 2 computed"),
        (lambda request: setattr(request, "published", 2), "Request 0 has published 2 blocks"),
        (lambda request: request.hashes.__setitem__(0, b"x"), "Request 0 has block 1 at index 0, published under"),
        (lambda request: setattr(request, "finish_reason", "stop"), "Request 0 has ended, but"),
    ],
)
def test_check_finds_damage(make_scheduler, make_request, step, damage, message):
    scheduler = make_scheduler()
    request = make_request(prompt=6)
    scheduler.add(request)
    step(scheduler)
    damage(request)
    with pytest.raises(EngineInvariantError, match=message):
        scheduler.check()
