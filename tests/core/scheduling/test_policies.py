from __future__ import annotations

import subprocess
import sys

import pytest

from octavo.errors import PluginError
from octavo.scheduling.policies import FcfsPolicy, PriorityPolicy


def bad_policy(**answers):
    class Bad(FcfsPolicy):
        pass

    for name, answer in answers.items():
        setattr(Bad, name, answer)
    return Bad()


def broken(self, *_):
    raise KeyError("lost")


def lazily_broken(self, requests, load):
    yield 0
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda self, requests, load: [0, 2], r"order\(\): 2 is no index of its 2 requests"),
        (lambda self, requests, load: range(3), r"order\(\): 2 is no index of its 2 requests"),
        (lambda self, requests, load: [-1], r"order\(\): -1 is no index"),
        (lambda self, requests, load: iter([0, 0]), r"order\(\): it names index 0 twice"),
        (lambda self, requests, load: ["0"], r"order\(\): '0' is no index"),
        (lambda self, requests, load: None, r"failed in order\(\): TypeError: 'NoneType' object is not iterable"),
        (broken, r"failed in order\(\): KeyError: 'lost'"),
        (lazily_broken, r"failed in order\(\): KeyError: 'lost'"),
    ],
)
def test_a_wrong_order_names_the_policy(make_scheduler, make_request, answer, message):
    scheduler = make_scheduler(policy=bad_policy(order=answer), policy_name="shortest")
    scheduler.add(make_request())
    scheduler.add(make_request())
    with pytest.raises(PluginError, match=f"Scheduling policy 'shortest' .*{message}"):
        scheduler.schedule()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda self, load, decodes, budget: budget + 1, "65 is not between 0 and the budget of 64"),
        (lambda self, load, decodes, budget: -1, "-1 is not between 0"),
        (lambda self, load, decodes, budget: 0.5, "0.5 is not between 0"),
        (broken, r"failed in prefill_budget\(\): KeyError"),
    ],
)
def test_a_wrong_prefill_budget_names_the_policy(make_scheduler, make_request, answer, message):
    scheduler = make_scheduler(policy=bad_policy(prefill_budget=answer), policy_name="shortest")
    scheduler.add(make_request())
    with pytest.raises(PluginError, match=f"Scheduling policy 'shortest' .*{message}"):
        scheduler.schedule()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda self, candidates, load: len(candidates), r"victim\(\): 2 is no index of its 2 candidates"),
        (lambda self, candidates, load: -1, r"victim\(\): -1 is no index"),
        (lambda self, candidates, load: candidates[0], r"victim\(\): .* is no index"),
        (broken, r"failed in victim\(\): KeyError"),
    ],
)
def test_a_wrong_victim_names_the_policy(make_scheduler, make_request, step, answer, message):
    scheduler = make_scheduler(blocks=4, policy=bad_policy(victim=answer), policy_name="shortest")
    for _ in range(2):
        scheduler.add(make_request(max_tokens=12))
    for _ in range(5):  # at 9 tokens each, both need a third block
        step(scheduler)
    with pytest.raises(PluginError, match=f"Scheduling policy 'shortest' .*{message}"):
        scheduler.schedule()


def test_a_policy_can_not_change_the_lines_it_is_shown(make_scheduler, make_request, step):
    shown = []

    class Curious(FcfsPolicy):
        def order(self, requests, load):
            shown.append(requests)
            return range(len(requests))

    scheduler = make_scheduler(policy=Curious())
    scheduler.add(make_request())
    step(scheduler)
    step(scheduler)
    assert [type(requests) for requests in shown] == [tuple, tuple]


def test_left_out_requests_wait(make_scheduler, make_request, step):
    class OnlyTheSecond(FcfsPolicy):
        def order(self, requests, load):
            return [1] if len(requests) > 1 else []

    scheduler = make_scheduler(policy=OnlyTheSecond())
    scheduler.add(make_request())
    assert step(scheduler) is None
    scheduler.add(make_request())
    assert [request.id for request in step(scheduler).requests] == [1]


def test_requests_are_shown_in_order_of_arrival_however_they_were_added(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_sequences=2)
    late, early, middle = make_request(arrival=3.0), make_request(arrival=1.0), make_request(arrival=2.0)
    for request in (late, early, middle):
        scheduler.add(request)
    assert step(scheduler).requests == [early, middle]


def test_priorities_admit_the_lowest_number_first(make_scheduler, make_request, step):
    scheduler = make_scheduler(policy=PriorityPolicy(), max_sequences=2)
    requests = [make_request(priority=priority) for priority in (1, 0, 0, -5)]
    for request in requests:
        scheduler.add(request)
    assert step(scheduler).requests == [requests[3], requests[1]]


def test_priorities_preempt_the_worst_and_among_equals_the_last(make_request):
    policy = PriorityPolicy()
    requests = [make_request(priority=priority) for priority in (1, 2, 2, 0)]
    assert policy.victim(requests, None) == 2
    assert FcfsPolicy().victim(requests, None) == 3


def test_an_urgent_request_is_never_preempted_for_others(make_scheduler, make_request, step):
    scheduler = make_scheduler(blocks=6, policy=PriorityPolicy(), prefix_caching=False)
    slow = [make_request(prompt=4, max_tokens=12, priority=1) for _ in range(2)]
    for request in slow:
        scheduler.add(request)
    step(scheduler)
    urgent = make_request(prompt=4, max_tokens=12, priority=0)
    scheduler.add(urgent)
    while urgent.finish_reason is None:
        step(scheduler)
    assert urgent.preemptions == 0
    assert slow[1].preemptions > 0


def test_nothing_here_imports_torch():
    code = (
        "import sys, octavo.scheduling.scheduler, octavo.scheduling.policies, octavo.testing.trial;"
        "assert not {'torch', 'triton', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
