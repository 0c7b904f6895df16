"""The inputs of a captured prompt are those of any other step, padded."""

from __future__ import annotations

import pytest
import torch

from octavo.contracts.executor import RowStart, StepPlan
from octavo.params import SamplingParams
from octavo.run.prompt_graphs import PromptGraphs, gather_prompt
from octavo.run.rows import Rows
from octavo.run.step import build_step

BLOCK = 16
TOKENS = list(range(100, 150))


@pytest.fixture
def rows() -> Rows:
    rows = Rows(4, 200, BLOCK, torch.device("cpu"))
    start = RowStart(2, TOKENS, len(TOKENS), SamplingParams(), 0, [], [])
    rows.apply(StepPlan(0, [], [start], [(2, 0, [7, 3, 9, 5])], [], [], [], []))
    return rows


@pytest.mark.parametrize(("first", "count"), [(0, 50), (16, 34), (0, 17), (40, 10)])
def test_inputs_equal_a_plain_step(rows: Rows, first: int, count: int) -> None:
    plan = StepPlan(1, [], [], [], [2], [first], [count], [True])
    expected = build_step(plan, rows, BLOCK, torch.device("cpu"))
    inputs = torch.tensor([2, first, count, *TOKENS[first : first + count], *[0] * (64 - count)])
    batch = gather_prompt(inputs, rows, BLOCK)
    assert batch.positions[:count].tolist() == expected.batch.positions.tolist()
    assert batch.slots.tolist() == [*expected.batch.slots.tolist(), *[-1] * (64 - count)]
    assert batch.seq_lens.tolist() == expected.batch.seq_lens.tolist()
    assert batch.query_starts.tolist() == expected.batch.query_starts.tolist()
    width = expected.batch.block_tables.shape[1]
    assert torch.equal(batch.block_tables[:, :width], expected.batch.block_tables)


def test_what_is_covered(rows: Rows) -> None:
    graphs = object.__new__(PromptGraphs)
    graphs._rows, graphs._captured = rows, {32: None, 64: None}  # type: ignore[dict-item]

    def plan(count: int, sampled: bool = True, first: int = 0, more: int = 0) -> StepPlan:
        extra = [3] * more
        return StepPlan(1, [], [], [], [2, *extra], [first, *extra], [count, *extra], [sampled, *[True] * more])

    assert graphs.covers(plan(50))
    assert graphs.covers(plan(34, first=16))
    assert not graphs.covers(plan(50, sampled=False))  # more of the prompt is to come
    assert not graphs.covers(plan(51))  # its last token is still on the device
    assert not graphs.covers(plan(1, first=49))  # a decode
    assert not graphs.covers(plan(20, more=1))
    graphs._captured = {32: None}  # type: ignore[dict-item]
    assert not graphs.covers(plan(50))
