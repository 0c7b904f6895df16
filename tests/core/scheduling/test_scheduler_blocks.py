"""Admission, preemption, and what is refused. Scenes by hand; blocks hold 4 tokens."""

from __future__ import annotations

import pytest

from octavo.errors import OverloadedError, RequestError
from octavo.params import SamplingParams
from octavo.scheduling.policies import FcfsPolicy, PriorityPolicy


def ids(scheduled):
    return [request.id for request in scheduled.requests]


def test_admission_waits_until_the_prompt_fits_beside_a_reserve(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=4)
    first, second = make_request(prompt=8, max_tokens=3), make_request(prompt=7)
    scheduler.add(first)
    scheduler.add(second)
    assert ids(step(scheduler)) == [0]  # 2 of 4 blocks: 2 more would leave no reserve
    assert ids(step(scheduler)) == [0]
    assert ids(step(scheduler)) == [0]
    assert first.finish_reason == "length"
    assert ids(step(scheduler)) == [1]


def test_admission_stops_at_the_first_that_does_not_fit(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=4)
    for prompt in (8, 16, 2):
        scheduler.add(make_request(prompt=prompt))
    assert ids(step(scheduler)) == [0]


def test_a_request_alone_may_use_the_whole_pool(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=3)
    request = make_request(prompt=12, max_tokens=50)
    scheduler.add(request)
    step(scheduler)
    assert request.output_ids == [7]
    assert request.finish_reason == "length"


def test_the_newest_is_preempted_and_recomputed_with_what_it_has_said(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=4, prefix_caching=False)
    old, new = make_request(prompt=4, max_tokens=9), make_request(prompt=4, max_tokens=9)
    scheduler.add(old)
    scheduler.add(new)
    while not new.preemptions:
        scheduled = step(scheduler)
    assert ids(scheduled) == [0]
    assert (new.row, new.blocks, new.computed) == (-1, [], 0)
    assert len(new.output_ids) == 5  # 4 + 5 tokens: both need a third block
    assert old.preemptions == 0
    assert scheduled.plan.ends == [1]
    while new.row < 0:
        scheduled = step(scheduler)
    start = scheduled.plan.starts[0]
    assert start.tokens == new.prompt_ids + [7] * 5
    assert start.prompt_length == 4
    while scheduler.has_work:
        step(scheduler)
    assert len(new.output_ids) == len(old.output_ids) == 9
    assert scheduler.stats().preemptions == 1


def test_a_request_may_preempt_itself(make_scheduler, make_request, step):
    class FirstGoes(FcfsPolicy):
        def victim(self, candidates, load):
            return 0

    scheduler = make_scheduler(blocks=4, policy=FirstGoes(), prefix_caching=False)
    first, second = make_request(prompt=4, max_tokens=9), make_request(prompt=4, max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    while not first.preemptions:
        scheduled = step(scheduler)
    assert ids(scheduled) == [1]  # the second got the block
    while scheduler.has_work:
        step(scheduler)
    assert len(first.output_ids) == len(second.output_ids) == 9


def test_nobody_is_admitted_in_a_step_that_preempted(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=7, policy=PriorityPolicy(), prefix_caching=False)
    big = make_request(prompt=20, priority=1)
    scheduler.add(make_request(prompt=4))
    scheduler.add(big)
    step(scheduler)
    scheduler.add(make_request(prompt=2))
    scheduled = step(scheduler)  # the first takes the last block, the big one needs a sixth
    assert big.preemptions == 1
    assert (ids(scheduled), scheduled.plan.starts) == ([1], [])
    assert ids(step(scheduler)) == [1, 2]


def test_those_that_were_granted_tokens_are_not_offered_as_victims(make_scheduler, make_request, step):
    offered = []

    class Watch(FcfsPolicy):
        def victim(self, candidates, load):
            offered.append([candidate.arrival for candidate in candidates])
            return len(candidates) - 1

    scheduler = make_scheduler(blocks=7, policy=Watch(), prefix_caching=False)
    for _ in range(3):
        scheduler.add(make_request(prompt=4, max_tokens=20))
    for _ in range(6):
        step(scheduler)
    # At 9 tokens each needs a third block; one is left. The first takes it; the second may take the third's.
    assert offered == [[1.0, 2.0]]


def test_first_come_first_served_never_preempts_the_oldest(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=6, max_batch_tokens=16, prefix_caching=False)
    old = make_request(prompt=10, max_tokens=14)
    scheduler.add(old)
    steps = 0
    while old.finish_reason is None:
        while len(scheduler._ledger.waiting) < 3:
            scheduler.add(make_request(prompt=3, max_tokens=6))
        step(scheduler)
        steps += 1
    assert old.preemptions == 0
    assert steps == 14


def test_a_stream_of_newcomers_starves_nobody(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=6, max_sequences=3, max_batch_tokens=8)
    finished: list[int] = []
    requests = []
    for _ in range(300):
        while len(scheduler._ledger.waiting) < 4:
            requests.append(make_request(prompt=3 + 5 * (len(requests) % 4), max_tokens=1 + len(requests) % 6))
            scheduler.add(requests[-1])
        step(scheduler)
        finished += [request.id for request in requests if request.finish_reason and request.id not in finished]
    assert len(finished) > 80
    # At most those that were running or waiting beside it can have overtaken a request.
    assert all(abs(place - number) <= 8 for place, number in enumerate(finished))


def test_what_can_never_fit_is_refused_with_numbers(make_scheduler, make_request):
    scheduler = make_scheduler(blocks=3, max_length=100)
    with pytest.raises(
        RequestError, match=r"The prompt has 13 tokens; the KV cache holds 12 \(3 blocks\)"
    ) as caught:
        scheduler.add(make_request(prompt=13))
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(RequestError, match="100 tokens; with a context length of 100, it may have 99"):
        scheduler.add(make_request(prompt=100))
    with pytest.raises(RequestError, match="prompt is empty"):
        scheduler.add(make_request(prompt=[]))
    with pytest.raises(RequestError, match="max_tokens must be at least 1, not 0"):
        scheduler.add(make_request(max_tokens=0, params=SamplingParams()))
    assert not scheduler.has_work


def test_an_answer_that_outgrows_the_pool_ends_with_length_whoever_runs(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=3)
    requests = [make_request(prompt=5, max_tokens=100) for _ in range(2)]
    for request in requests:
        scheduler.add(request)
    while scheduler.has_work:
        step(scheduler)
    assert [len(request.output_ids) for request in requests] == [8, 8]  # 12 computed, the 13th only sampled
    assert {request.finish_reason for request in requests} == {"length"}


def test_the_queue_has_an_end(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_queue=2, max_sequences=1)
    scheduler.add(make_request())
    step(scheduler)
    scheduler.add(make_request())
    scheduler.add(make_request())
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        scheduler.add(make_request())
