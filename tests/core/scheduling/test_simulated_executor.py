"""The simulated device refuses what a real one could not run, or would answer wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.cache.blocks import EngineInvariantError
from octavo.contracts.executor import RowStart, StepPlan
from octavo.errors import PluginError
from octavo.params import SamplingParams
from octavo.scheduling.policies import FcfsPolicy, PriorityPolicy
from octavo.testing.simulated import SimulatedExecutor, expected_answer
from octavo.testing.trial import Job, try_policy

PROMPT = [5, 6, 7, 8, 9, 10]


def start(row: int, tokens: list[int] = PROMPT, **fields: Any) -> RowStart:
    given: dict[str, Any] = {"prompt_length": len(tokens), "params": SamplingParams(), "seed": 0}
    return RowStart(row=row, tokens=tokens, **(given | {"stop_ids": [], "bad_word_ids": []} | fields))


def plan(number: int = 1, **fields: Any) -> StepPlan:
    """One row with a prompt of six tokens in blocks 1 and 2, unless ``fields`` say otherwise."""
    given: dict[str, Any] = {"ends": [], "starts": [start(0)], "blocks": [(0, 0, [1, 2])]}
    given |= {"rows": [0], "positions": [0], "counts": [6], "samples": [True]}
    return StepPlan(number=number, **(given | fields))


def decode(number: int, position: int, **fields: Any) -> StepPlan:
    given: dict[str, Any] = {"starts": [], "blocks": [], "positions": [position], "counts": [1]}
    return plan(number, **(given | fields))


@pytest.fixture
def device() -> SimulatedExecutor:
    return SimulatedExecutor(num_blocks=6, block_size=4, max_sequences=2, max_batch_tokens=16)


def test_tokens_are_those_expected_whatever_the_chunks(device):
    params = SamplingParams(max_tokens=3)
    expected = expected_answer(PROMPT, params, max_tokens=3)
    device.launch(plan(1, counts=[4], samples=[False]))
    got = [int(device.launch(decode(2, 4, counts=[2])).result().tokens[0])]
    got += [int(device.launch(decode(number, number + 3)).result().tokens[0]) for number in (3, 4)]
    assert got == expected
    other = expected_answer(PROMPT, params, max_tokens=3, seed=1)
    assert other != expected != expected_answer(PROMPT, params, max_tokens=3, adapter=1)


def test_stop_ids_end_the_expected_answer_but_not_before_min_tokens():
    free = expected_answer(PROMPT, SamplingParams(), max_tokens=10)
    assert expected_answer(PROMPT, SamplingParams(), max_tokens=10, stop_ids=[free[2]])[-1] == free[2]
    barred = expected_answer(PROMPT, SamplingParams(min_tokens=5), max_tokens=10, stop_ids=[free[2]])
    assert free[2] not in barred[:5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ends": [0]}, "Row 0 is ended, but it was not started"),
        ({"starts": [start(0), start(0)]}, "Row 0 is started twice"),
        ({"starts": [start(2)]}, "Row 2 is out of range"),
        ({"starts": [start(0, prompt_length=7)]}, "wrong prompt length"),
        ({"blocks": [(1, 0, [1])]}, "Row 1 gets blocks, but it was not started"),
        ({"blocks": [(0, 1, [1, 2])]}, "Row 0 gets blocks at index 1; it has 0"),
        ({"blocks": [(0, 0, [1, 6])]}, "Row 0 gets block 6, which does not exist"),
        ({"blocks": [(0, 0, [0, 1])]}, "Row 0 gets block 0, which does not exist"),
        ({"blocks": [(0, 0, [1, 1])]}, "Row 0 gets block 1 twice"),
        ({"blocks": [(0, 0, [1])]}, "Row 0 has blocks for 4 tokens, not for 6"),
        ({"rows": [1]}, "Row 1 computes, but it was not started"),
        ({"rows": [], "positions": [], "counts": [], "samples": []}, "The plan has no rows"),
        ({"counts": [0]}, "A row computes no token"),
        ({"counts": [7]}, "Row 0 computes up to position 7, but only 6 tokens are known"),
        ({"samples": [False]}, "Row 0 must sample if, and only if"),
        ({"counts": [5]}, "Row 0 must sample if, and only if"),
        ({"positions": [2], "counts": [4]}, "Row 0 starts at 2, inside a block"),
        ({"positions": [4], "counts": [2]}, r"Row 0 reads block 1 \(index 0\), which holds other tokens"),
        ({"number": 0}, "Step 0 comes after step 0"),
    ],
)
def test_plans_that_can_not_run(device, wrong, message):
    with pytest.raises(EngineInvariantError, match=message):
        device.launch(plan(**wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"position": 5, "counts": [2]}, "Row 0 has computed 6, not 5, tokens"),
        ({"position": 6, "rows": [0, 0], "positions": [6, 6], "counts": [1, 1], "samples": [True] * 2}, "twice"),
    ],
)
def test_steps_that_do_not_follow(device, wrong, message):
    device.launch(plan())
    with pytest.raises(EngineInvariantError, match=message):
        device.launch(decode(2, **wrong))


def two_rows(second: RowStart, blocks: list[int], position: int, counts: tuple[int, int]) -> StepPlan:
    return plan(
        starts=[start(0), second],
        blocks=[(0, 0, [1, 2]), (1, 0, blocks)],
        rows=[0, 1],
        positions=[0, position],
        counts=list(counts),
        samples=[True, True],
    )


def test_rows_of_one_step_may_share_what_is_computed_in_it(device):
    device.launch(two_rows(start(1, [5, 6, 7, 8, 1, 2]), [1, 3], 4, (6, 2)))


def test_a_block_of_another_prefix_is_found(device):
    with pytest.raises(EngineInvariantError, match="Row 1 reads block 1"):
        device.launch(two_rows(start(1, [5, 6, 7, 1, 1, 2]), [1, 3], 4, (6, 2)))


def test_a_block_of_another_adapter_is_found(device):
    with pytest.raises(EngineInvariantError, match="Row 1 reads block 1"):
        device.launch(two_rows(start(1, adapter_slot=1), [1, 3], 4, (6, 2)))


def test_a_block_given_to_two_requests_is_found(device):
    with pytest.raises(EngineInvariantError, match="Two rows write slot 0 of block 2"):
        device.launch(two_rows(start(1, [1, 2, 3, 4, 5, 6]), [3, 2], 0, (6, 6)))


def test_a_block_taken_from_a_living_request_is_found_when_it_reads(device):
    device.launch(plan())
    thief = {"starts": [start(1, [1, 2])], "blocks": [(1, 0, [1])], "rows": [1], "counts": [2]}
    device.launch(decode(2, 0, **thief))
    with pytest.raises(EngineInvariantError, match="Row 0 reads block 1"):
        device.launch(decode(3, 6))


def test_rows_of_one_token_come_first_and_the_budget_holds(device):
    with pytest.raises(EngineInvariantError, match="Rows of one token must come first"):
        device.launch(two_rows(start(1, [1]), [3], 0, (6, 1)))
    small = SimulatedExecutor(num_blocks=6, block_size=4, max_batch_tokens=5)
    with pytest.raises(EngineInvariantError, match="The step has 6 tokens"):
        small.launch(plan())


def test_poisoned_rows_fail_and_logprobs_come_where_asked_for():
    device = SimulatedExecutor(num_blocks=6, block_size=4, poison=9)
    assert device.launch(plan()).result().failed == {0: "The logits are not finite."}
    device = SimulatedExecutor(num_blocks=6, block_size=4)
    params = SamplingParams(logprobs=0, prompt_logprobs=0)
    result = device.launch(plan(starts=[start(0, params=params)])).result()
    assert result.logprobs[0][0].token == result.tokens[0]
    assert [score.token for score in result.prompt_logprobs[0]] == PROMPT[1:]


def test_stop_frees_all_rows(device):
    device.launch(plan())
    assert device.active_rows == {0}
    device.stop()
    assert device.active_rows == frozenset()


# --- trying policies -----------------------------------------------------------------------------------------

JOBS = [Job(prompt_length=20, max_tokens=12, arrival=index // 2, priority=-index) for index in range(8)]
TIGHT = {"num_blocks": 14, "block_size": 4, "max_sequences": 4, "max_batch_tokens": 32}


@pytest.mark.parametrize("depth", [0, 1])
def test_first_come_first_served_serves_in_order(depth):
    outcomes = try_policy(FcfsPolicy(), JOBS, depth=depth, **TIGHT)
    finished = [outcome.finished for outcome in outcomes]
    assert finished == sorted(finished)
    assert all(0 < outcome.first_token < outcome.finished for outcome in outcomes)


def test_priorities_change_the_order():
    outcomes = try_policy(PriorityPolicy(), JOBS, **TIGHT)
    assert outcomes[7].finished < outcomes[2].finished


def test_a_policy_that_starves_or_lies_is_found():
    class Never(FcfsPolicy):
        def order(self, requests, load):
            return ()

    class Wrong(FcfsPolicy):
        def order(self, requests, load):
            return [99]

    with pytest.raises(EngineInvariantError, match="8 jobs are not done after 50 steps"):
        try_policy(Never(), JOBS, max_steps=50)
    with pytest.raises(PluginError, match="Scheduling policy 'Wrong'"):
        try_policy(Wrong(), JOBS)


def test_a_right_draft_brings_its_tokens_and_one_more(device):
    first, *rest = expected_answer(PROMPT, SamplingParams(logprobs=0), max_tokens=6)
    assert device.launch(plan(1, starts=[start(0, params=SamplingParams(logprobs=0))])).result().tokens[0] == first
    result = device.launch(decode(2, 6, counts=[4], drafts={0: rest[:3]}, blocks=[(0, 2, [3])])).result()
    assert [*result.accepted[0], result.tokens[0]] == rest[:4]
    assert [score.token for score in result.logprobs[0]] == rest[:4]
    assert device.launch(decode(3, 10)).result().tokens[0] == rest[4]


def test_a_wrong_draft_is_undone_with_its_blocks(device):
    rest = expected_answer(PROMPT, SamplingParams(), max_tokens=6)[1:]
    device.launch(plan(1))
    wrong = (rest[1] + 1) % 64
    result = device.launch(decode(2, 6, counts=[4], drafts={0: [rest[0], wrong, 0]}, blocks=[(0, 2, [3])])).result()
    assert [*result.accepted[0], result.tokens[0]] == rest[:2]
    with pytest.raises(EngineInvariantError, match="blocks for 8 tokens, not for 9"):
        device.launch(decode(3, 8))
    result = device.launch(decode(4, 8, blocks=[(0, 2, [4])])).result()
    assert (result.accepted, result.tokens[0]) == ({}, rest[2])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"counts": [2], "drafts": {0: [64]}}, "an impossible draft"),
        ({"counts": [1], "drafts": {0: [1]}}, "has a draft, but is not complete"),
        ({"counts": [3], "drafts": {0: [1]}}, "has a draft, but is not complete"),
    ],
)
def test_drafts_that_no_device_could_run(device, fields, problem):
    device.launch(plan(1))
    with pytest.raises(EngineInvariantError, match=problem):
        device.launch(decode(2, 6, **fields))
