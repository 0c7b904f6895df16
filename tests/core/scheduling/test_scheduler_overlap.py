"""Scheduling before the last step's tokens are in. Scenes by hand; blocks hold 4 tokens."""

from __future__ import annotations


def ids(scheduled):
    return [request.id for request in scheduled.requests]


def test_a_decode_is_scheduled_on_a_token_that_is_still_on_the_device(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    request = make_request(prompt=3, max_tokens=8)
    scheduler.add(request)
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert (second.plan.positions, second.plan.counts, second.plan.samples) == ([3], [1], [True])
    assert (request.pending, request.known, request.output_ids) == (2, 5, [])
    finish_step(scheduler, first, token=11)
    finish_step(scheduler, second, token=12)
    assert (request.pending, request.known, request.output_ids) == (0, 5, [11, 12])


def test_no_step_is_spent_beyond_max_tokens(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    request = make_request(max_tokens=2)
    scheduler.add(request)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.schedule() is None
    assert scheduler.has_work
    assert finish_step(scheduler, first)[0].finish_reason is None
    assert finish_step(scheduler, second)[0].finish_reason == "length"
    assert not scheduler.has_work


def test_a_token_after_the_end_is_dropped(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    request = make_request(stop_ids=frozenset({9}), eos_ids=frozenset({9}))
    scheduler.add(request)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert finish_step(scheduler, first, token=9)[0].finish_reason == "stop"
    assert finish_step(scheduler, second, token=5) == []
    assert request.output_ids == [9]
    assert scheduler.stats().generated_tokens == 1


def test_a_block_of_sampled_tokens_is_published_when_they_are_known(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler()
    request = make_request(prompt=[1, 2, 3])
    scheduler.add(request)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert request.published == 0  # the fourth token is not known to the host
    finish_step(scheduler, first, token=4)
    assert request.published == 1
    finish_step(scheduler, second, token=5)


def test_a_preempted_request_is_not_readmitted_while_its_token_is_in_flight(
    make_scheduler, make_request, finish_step
):
    scheduler = make_scheduler(blocks=2, prefix_caching=False)
    old, new = make_request(prompt=2, max_tokens=6), make_request(prompt=2, max_tokens=6)
    scheduler.add(old)
    first = scheduler.schedule()
    assert ids(first) == [0]  # the reserve
    scheduler.add(new)
    scheduler._ledger.seat(new, [], 2)  # both run, as if there were no reserve
    flying = scheduler.schedule()
    assert ids(flying) == [0, 1]
    finish_step(scheduler, first)
    second = scheduler.schedule()
    assert ids(second) == [0, 1]
    third = scheduler.schedule()  # the old one needs a second block
    assert ids(third) == [0]
    assert (new.preemptions, new.pending) == (1, 2)
    scheduler.abort(old.id)
    assert scheduler.schedule() is None  # there is room, but two tokens are on the device
    finish_step(scheduler, flying, token=21)
    assert scheduler.schedule() is None
    finish_step(scheduler, second, token=22)
    finish_step(scheduler, third)
    assert scheduler.schedule().plan.starts[0].tokens == [*new.prompt_ids, 21, 22]


def test_a_preempted_request_may_end_while_it_waits(make_scheduler, make_request, finish_step):
    scheduler = make_scheduler(blocks=4, prefix_caching=False)
    old, new = make_request(prompt=4, max_tokens=9), make_request(prompt=4, max_tokens=9, stop_ids=frozenset({9}))
    scheduler.add(old)
    scheduler.add(new)
    scheduled = scheduler.schedule()
    while not new.preemptions:
        following = scheduler.schedule()
        if not new.preemptions:
            finish_step(scheduler, scheduled)
            scheduled = following
    assert new.row == -1
    progress = finish_step(scheduler, scheduled, token=9)
    assert [(p.request.id, p.finish_reason) for p in progress] == [(0, None), (1, "stop")]
    assert scheduler.stats().waiting == 0
