"""Who starts behind whose prefix. Scenes by hand; blocks hold 4 tokens."""

from __future__ import annotations

import pytest

from octavo.params import SamplingParams


def test_a_later_request_starts_behind_the_longest_cached_prefix(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    prompt = list(range(100, 111))
    scheduler.add(make_request(prompt=prompt, max_tokens=1))
    step(scheduler)
    second = make_request(prompt=[*prompt[:9], 1, 2])
    scheduler.add(second)
    plan = step(scheduler).plan
    assert (plan.positions, plan.counts) == ([8], [3])
    assert plan.blocks[0][2][:2] == [1, 2]
    assert second.cached_tokens == 8
    stats = scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (22, 8)


def test_one_token_is_always_left_to_compute(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    prompt = list(range(100, 108))
    scheduler.add(make_request(prompt=prompt, max_tokens=1))
    step(scheduler)
    scheduler.add(make_request(prompt=prompt))
    plan = step(scheduler).plan
    assert (plan.positions, plan.counts) == ([4], [4])


def test_requests_of_one_step_share_what_is_computed_in_it(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    prompt = list(range(100, 110))
    for tail in range(3):
        scheduler.add(make_request(prompt=[*prompt, tail]))
    plan = step(scheduler).plan
    assert plan.counts == [11, 3, 3]
    assert [blocks[:2] for _, _, blocks in plan.blocks] == [[1, 2]] * 3


def test_what_is_not_granted_yet_is_not_shared(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_batch_tokens=10)
    prompt = list(range(100, 112))
    scheduler.add(make_request(prompt=[*prompt, 1, 2]))
    scheduler.add(make_request(prompt=[*prompt, 3]))
    assert step(scheduler).plan.counts == [10]
    plan = step(scheduler).plan
    assert sorted(zip(plan.positions, plan.counts, strict=True)) == [(10, 4), (12, 1)]


def test_generated_tokens_are_cached_too(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    first = make_request(prompt=[1, 2, 3], max_tokens=6)
    scheduler.add(first)
    while scheduler.has_work:
        step(scheduler)
    second = make_request(prompt=[1, 2, 3, 7, 7, 7, 7, 7, 7])
    scheduler.add(second)
    step(scheduler)
    assert second.cached_tokens == 8


@pytest.mark.parametrize(
    "other", [{"root": b"other salt or adapter"}, {"params": SamplingParams(prompt_logprobs=1)}]
)
def test_nothing_is_shared_across_roots_or_with_prompt_logprobs(make_scheduler, make_request, step, other):
    scheduler = make_scheduler()
    prompt = list(range(100, 110))
    scheduler.add(make_request(prompt=prompt))
    second = make_request(prompt=prompt, **other)
    scheduler.add(second)
    assert step(scheduler).plan.counts == [10, 10]
    assert second.cached_tokens == 0


def test_prefix_caching_can_be_off(make_scheduler, make_request, step):
    scheduler = make_scheduler(prefix_caching=False)
    prompt = list(range(100, 110))
    for _ in range(2):
        scheduler.add(make_request(prompt=prompt, max_tokens=2))
    assert step(scheduler).plan.counts == [10, 10]
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.cached_blocks, stats.prefix_queries, stats.prefix_hits) == (0, 0, 0)


def test_the_prefix_cache_can_be_reset_while_requests_run(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    prompt = list(range(100, 110))
    scheduler.add(make_request(prompt=prompt))
    step(scheduler)
    scheduler.reset_prefix_cache()
    second = make_request(prompt=prompt)
    scheduler.add(second)
    step(scheduler)
    assert second.cached_tokens == 0


def test_a_preempted_request_finds_its_own_prefix_again_but_reports_no_cached_tokens(
    make_scheduler, make_request, step
):
    scheduler = make_scheduler(blocks=5)
    old, new = make_request(prompt=6, max_tokens=9), make_request(prompt=6, max_tokens=9)
    scheduler.add(old)
    scheduler.add(new)
    while scheduler.has_work:
        scheduled = step(scheduler)
        if new.preemptions and scheduled.plan.starts:
            assert scheduled.plan.positions[scheduled.requests.index(new)] > 0
    assert new.preemptions == 1
    assert new.cached_tokens == 0
