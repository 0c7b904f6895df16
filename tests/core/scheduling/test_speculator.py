"""What a proposer answers is checked; a broken one costs its drafts and nothing else."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from octavo.contracts.executor import StepResult
from octavo.contracts.proposer import Draft
from octavo.errors import OctavoError
from octavo.scheduling.speculator import Speculator

VOCABULARY = 100


class Fixed:
    """Proposes the same tokens to everyone."""

    max_tokens: Any = 4

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens
        self.calls: list[Any] = []
        self.reserved: dict[int, list[int]] = {}

    def reserve(self, row, tokens):
        self.reserved[row] = list(tokens)

    def release(self, row):
        del self.reserved[row]

    def propose(self, rows):
        self.calls.append(rows)
        for row in rows:
            self.reserved[row.row] += row.fresh
        lengths = np.array([min(len(self.tokens), row.limit) for row in rows])
        return Draft(np.tile(np.array(self.tokens, np.int64), (len(rows), 1)), lengths)


class Broken(Fixed):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def propose(self, rows):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(len(rows))


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.int64)


def full(count: int) -> Any:
    return np.full(count, 2)


BROKEN: dict[str, tuple[Any, str]] = {
    "raises": (ValueError("no idea today"), "ValueError: no idea today"),
    "nothing": (lambda n: None, "AttributeError"),
    "flat": (lambda n: Draft(zeros(n), full(n)), r"tokens must be an array \[1, width\], not \[1\]"),
    "too many rows": (lambda n: Draft(zeros(n + 1, 2), full(n)), r"not \[2, 2\]"),
    "lengths of the wrong shape": (lambda n: Draft(zeros(n, 2), full(n + 1)), r"lengths must be an array \[1\]"),
    "a list": (lambda n: Draft([[1, 2]], full(n)), "not list"),
    "floats": (lambda n: Draft(zeros(n, 2).astype(float), full(n)), "must be integers, not float64"),
    "a length beyond the width": (lambda n: Draft(zeros(n, 1), full(n)), "a draft of 2 tokens, where 1"),
    "a negative length": (lambda n: Draft(zeros(n, 2), full(n) * -1), "a draft of -2 tokens"),
    "too long": (lambda n: Draft(zeros(n, 90), full(n) * 40), "a draft of 80 tokens, where 4 were"),
    "out of range": (lambda n: Draft(zeros(n, 2) + VOCABULARY, full(n)), "not between 0 and 99"),
    "negative ids": (lambda n: Draft(zeros(n, 2) - 1, full(n)), "not between 0 and 99"),
}


@pytest.fixture
def build(make_scheduler):
    def make(proposer, **fields):
        speculator = Speculator(proposer, "tested", VOCABULARY, 8)
        return make_scheduler(speculator=speculator, **fields), speculator

    return make


def verify(scheduler, scheduled, accept: int = 0, token: int = 7):
    """Finish a step in which each draft's first ``accept`` tokens were right."""
    plan = scheduled.plan
    accepted = {index: draft[:accept] for index, draft in plan.drafts.items() if accept}
    tokens = np.array([token if sample else -1 for sample in plan.samples])
    progress = scheduler.update(scheduled, StepResult(plan.number, tokens, {}, {}, {}, accepted))
    scheduler.check()
    return progress


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_proposer_is_switched_off_and_requests_go_on(case, build, make_request, step, caplog) -> None:
    answer, reason = BROKEN[case]
    scheduler, speculator = build(Broken(answer))
    request = make_request(4, max_tokens=6)
    scheduler.add(request)
    while scheduler.has_work:
        assert step(scheduler).plan.drafts == {}
    assert request.finish_reason == "length"
    assert len(request.output_ids) == 6
    assert speculator.off.startswith("proposer 'tested' was switched off: ")
    assert re.search(reason, speculator.off)
    assert speculator.off in caplog.text
    assert scheduler.stats().speculation_off == speculator.off


@pytest.mark.parametrize("most", [0, -1, None, 2.5])
def test_a_proposer_without_a_longest_draft_is_switched_off(most, make_scheduler) -> None:
    proposer = Fixed(1)
    proposer.max_tokens = most
    assert "max_tokens must be an integer from 1 up" in Speculator(proposer, "tested", VOCABULARY, 8).off


@pytest.mark.parametrize("name", ["reserve", "release"])
def test_a_proposer_that_fails_at_its_rows_is_switched_off(name, build, make_request, step) -> None:
    proposer = Fixed(1, 2)

    def fail(*_: Any) -> None:
        raise OctavoError("out of rows")

    setattr(proposer, name, fail)
    scheduler, speculator = build(proposer)
    for _ in range(2):
        scheduler.add(make_request(4, max_tokens=3))
        while scheduler.has_work:
            step(scheduler)
    assert "out of rows" in speculator.off


def test_a_plan_with_drafts(build, make_request, step) -> None:
    scheduler, speculator = build(Fixed(1, 2, 3))
    request = make_request([10, 11, 12, 13, 14], max_tokens=20)
    scheduler.add(request)
    step(scheduler)  # the prompt; samples 7
    scheduled = scheduler.schedule()
    plan = scheduled.plan
    assert (plan.positions, plan.counts, plan.samples, plan.drafts) == ([5], [4], [True], {0: [1, 2, 3]})
    assert (request.computed, request.known, request.drafted, len(request.blocks)) == (6, 7, 3, 3)
    (progress,) = verify(scheduler, scheduled, accept=2, token=9)
    assert progress.token_ids == [1, 2, 9]
    assert request.output_ids == [7, 1, 2, 9]
    assert (request.computed, request.known, request.drafted, len(request.blocks)) == (8, 9, 0, 2)
    counts = speculator.counts
    assert (counts.drafts, counts.drafted, counts.accepted, tuple(counts.accepted_at)) == (
        1,
        3,
        2,
        (1, 1, 0, 0),
    )


def test_wrong_drafts_leave_no_block_and_no_prefix(build, make_request, step) -> None:
    scheduler, _ = build(Fixed(1, 2, 3))
    request = make_request([10, 11, 12, 13, 14, 15, 16], max_tokens=20)
    scheduler.add(request)
    step(scheduler)
    before = scheduler.stats()
    verify(scheduler, scheduler.schedule(), accept=0)
    after = scheduler.stats()
    assert after.used_blocks == before.used_blocks == len(request.blocks) == 2
    assert request.published == 2  # of 8 tokens, the last sampled before the draft
    assert len(request.hashes) == 2


def test_a_draft_ends_where_the_answer_does(build, make_request, step) -> None:
    scheduler, _ = build(Fixed(1, 2, 3))
    request = make_request(4, max_tokens=4)
    scheduler.add(request)
    step(scheduler)
    scheduled = scheduler.schedule()
    assert scheduled.plan.drafts == {0: [1, 2]}  # two, and the one sampled behind them
    (progress,) = verify(scheduler, scheduled, accept=2)
    assert (progress.token_ids, progress.finish_reason) == ([1, 2, 7], "length")


def test_a_stop_token_inside_a_draft_ends_the_answer(build, make_request, step) -> None:
    scheduler, _ = build(Fixed(1, 2, 3))
    request = make_request(4, max_tokens=20, stop_ids=frozenset([2]))
    scheduler.add(request)
    step(scheduler)
    (progress,) = verify(scheduler, scheduler.schedule(), accept=3)
    assert (progress.token_ids, progress.finish_reason, request.stop_reason) == ([1, 2], "stop", 2)
    assert scheduler.stats().used_blocks == 0


def test_drafts_take_no_block_that_somebody_will_need(build, make_request, step) -> None:
    scheduler, _ = build(Fixed(1, 2, 3, 4), blocks=4)
    first, second = make_request(3, max_tokens=6), make_request(3, max_tokens=6)
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    assert (len(first.blocks), len(second.blocks)) == (1, 1)
    plan = scheduler.schedule().plan
    # Two blocks are free, and each of the two may need one: drafts stay within the blocks that are there.
    assert plan.drafts == {}
    assert plan.counts == [1, 1]


def test_drafts_leave_prompts_half_of_the_budget(build, make_request, step) -> None:
    scheduler, _ = build(Fixed(1, 2, 3, 4), max_batch_tokens=9)
    scheduler.add(make_request(4, max_tokens=20))
    step(scheduler)
    scheduler.add(make_request(20, max_tokens=2))
    plan = scheduler.schedule().plan
    assert plan.num_tokens == 9
    assert plan.counts == [5, 4]


def test_requests_that_must_not_speculate_do_not(build, make_request, step) -> None:
    proposer = Fixed(1, 2)
    scheduler, _ = build(proposer)
    scheduler.add(make_request(4, max_tokens=4, speculates=False))
    while scheduler.has_work:
        assert step(scheduler).plan.drafts == {}
    assert proposer.calls == []


def test_rows_are_released_and_told_of_fresh_tokens_only(build, make_request, step) -> None:
    proposer = Fixed(1, 2)
    scheduler, _ = build(proposer)
    request = make_request([5, 6, 7], max_tokens=20)
    scheduler.add(request)
    step(scheduler)
    verify(scheduler, scheduler.schedule(), accept=1)
    verify(scheduler, scheduler.schedule(), accept=1, token=8)
    scheduler.schedule()
    assert proposer.reserved == {request.row: [5, 6, 7, *request.output_ids]}
    assert [list(call[0].fresh) for call in proposer.calls] == [[], [1, 7], [1, 8]]
    scheduler.abort(request.id)
    scheduler.add(make_request(4, max_tokens=2))
    scheduler.schedule()
    assert proposer.reserved == {}


def test_drafts_that_are_always_wrong_cease(build, make_request, step) -> None:
    proposer = Fixed(1, 2, 3)
    scheduler, speculator = build(proposer)
    scheduler.add(make_request(4, max_tokens=400))
    while scheduler.has_work:
        verify(scheduler, scheduler.schedule())
    assert speculator.counts.accepted == 0
    assert 0 < speculator.counts.drafts < 120
