"""Who gets how many tokens, and in which rows. Scenes by hand; blocks hold 4 tokens."""

from __future__ import annotations

from octavo.scheduling.policies import FcfsPolicy, PriorityPolicy


class HalfBudget(FcfsPolicy):
    def prefill_budget(self, load, decodes, budget):
        self.asked = (decodes, budget)
        return budget // 2


def test_a_prompt_is_computed_and_then_decoded(make_scheduler, make_request, step):
    scheduler = make_scheduler()
    request = make_request(prompt=6)
    scheduler.add(request)
    first = step(scheduler).plan
    assert (first.number, first.rows, first.positions, first.counts, first.samples) == (1, [0], [0], [6], [True])
    assert first.starts[0].tokens == request.prompt_ids
    assert first.starts[0].prompt_length == 6
    assert first.blocks == [(0, 0, [1, 2])]
    second = step(scheduler).plan
    assert (second.number, second.positions, second.counts, second.samples) == (2, [6], [1], [True])
    assert second.starts == second.blocks == second.ends == []
    assert request.output_ids == [7, 7]


def test_a_long_prompt_is_cut_to_the_budget_and_samples_only_at_its_end(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request(prompt=12))
    plans = [step(scheduler).plan for _ in range(4)]
    assert [plan.counts for plan in plans] == [[5], [5], [2], [1]]
    assert [plan.positions for plan in plans] == [[0], [5], [10], [12]]
    assert [plan.samples for plan in plans] == [[False], [False], [True], [True]]
    assert [blocks for plan in plans for blocks in plan.blocks] == [(0, 0, [1, 2]), (0, 2, [3]), (0, 3, [4])]


def test_decodes_come_first_and_keep_their_share_of_the_budget(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_batch_tokens=6)
    long, short = make_request(prompt=20), make_request(prompt=2)
    scheduler.add(short)
    step(scheduler)
    scheduler.add(long)
    plan = step(scheduler).plan
    assert (plan.rows, plan.counts) == ([0, 1], [1, 5])


def test_an_older_prompt_does_not_push_out_a_newer_decode(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_batch_tokens=4, policy=PriorityPolicy())
    old, new = make_request(prompt=20, priority=0), make_request(prompt=2, priority=1)
    scheduler.add(new)
    step(scheduler)
    scheduler.add(old)
    plan = step(scheduler).plan
    assert (plan.rows, plan.counts) == ([0, 1], [1, 3])
    plan = step(scheduler).plan
    assert (plan.rows, plan.counts) == ([0, 1], [1, 3])


def test_a_chunk_of_one_token_is_a_single_that_does_not_sample(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_batch_tokens=1)
    scheduler.add(make_request(prompt=3))
    plans = [step(scheduler).plan for _ in range(3)]
    assert [plan.samples for plan in plans] == [[False], [False], [True]]


def test_the_policy_limits_the_tokens_of_prompts(make_scheduler, make_request, step):
    policy = HalfBudget()
    scheduler = make_scheduler(max_batch_tokens=9, policy=policy)
    scheduler.add(make_request(prompt=2))
    step(scheduler)
    scheduler.add(make_request(prompt=20))
    plan = step(scheduler).plan
    assert policy.asked == (1, 8)
    assert plan.counts == [1, 4]


def test_running_prompts_share_one_prompt_budget(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_batch_tokens=8, policy=(policy := HalfBudget()))
    scheduler.add(make_request(prompt=2))
    step(scheduler)
    scheduler.add(make_request(prompt=8))
    scheduler.add(make_request(prompt=20))
    assert step(scheduler).plan.counts == [1, 3]
    policy.prefill_budget = lambda load, decodes, budget: budget
    assert step(scheduler).plan.counts == [1, 5, 2]  # the first prompt ends, the second starts
    scheduler.add(make_request(prompt=20))
    assert step(scheduler).plan.counts == [1, 1, 6]
    assert sum(step(scheduler).plan.counts) == 8


def test_a_policy_that_gives_prompts_nothing_does_not_stop_the_engine(make_scheduler, make_request, step):
    class Nothing(FcfsPolicy):
        def prefill_budget(self, load, decodes, budget):
            return 0

    scheduler = make_scheduler(policy=Nothing())
    scheduler.add(make_request(prompt=3))
    assert [step(scheduler).plan.samples for _ in range(3)] == [[False], [False], [True]]


def test_pure_decode_steps_do_not_ask_for_a_prompt_budget(make_scheduler, make_request, step):
    policy = HalfBudget()
    scheduler = make_scheduler(policy=policy)
    scheduler.add(make_request(prompt=2))
    step(scheduler)
    policy.asked = None
    step(scheduler)
    assert policy.asked is None


def test_rows_are_the_lowest_free_ones(make_scheduler, make_request, step):
    scheduler = make_scheduler(max_sequences=3)
    requests = [make_request() for _ in range(4)]
    for request in requests:
        scheduler.add(request)
    assert step(scheduler).plan.rows == [0, 1, 2]
    scheduler.abort(requests[1].id)
    plan = step(scheduler).plan
    assert plan.ends == [1]
    assert [start.row for start in plan.starts] == [1]
    assert requests[3].row == 1
