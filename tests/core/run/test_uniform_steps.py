"""Steps of captured graphs: the same tokens, places and samples as the step that is built from the same plan."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from octavo.contracts.executor import GUESSED, RowStart, StepPlan
from octavo.ops.noise import mixed_seeds, row_keys, row_keys_on_device
from octavo.params import SamplingParams
from octavo.run.graphs import gather_step, graph_sizes, inputs_of, step_inputs, verify_shapes
from octavo.run.guess_ends import GuessEnds, Noise, Place
from octavo.run.rows import Rows
from octavo.run.step import build_step

CPU = torch.device("cpu")
BLOCK, LENGTH, LONGEST = 4, 64, 5


@pytest.fixture
def world():
    """Rows of random requests, the last tokens and guesses of some of them on the device only."""
    random, rows = Random(3), Rows(8, LENGTH, BLOCK, CPU, LONGEST)
    starts, blocks = [], []
    for row in range(8):
        tokens = [random.randrange(100) for _ in range(random.randint(3, 20))]
        starts.append(RowStart(row, tokens, len(tokens), SamplingParams(temperature=0.5 * (row % 2)), row, [], []))
        blocks.append((row, 0, [1 + 16 * row + place for place in range(16)]))
    plan = StepPlan(1, [], starts, blocks, [], [], [], [])
    rows.apply(plan)
    rows.last_tokens[:8] = torch.arange(200, 208)
    rows.guesses[:8] = torch.arange(300, 340).view(8, LONGEST)
    return rows, [len(start.tokens) for start in starts], starts


def plan_of(drafts: dict[int, list[int]], numbers: list[int], known: list[int]) -> StepPlan:
    """Every second row's token is on the device only."""
    order = sorted(range(len(numbers)), key=lambda at: len(drafts.get(at, [])) > 0)
    rows = [numbers[at] for at in order]
    return StepPlan(
        2,
        [],
        [],
        [],
        rows,
        [known[row] - (row % 2) for row in rows],
        [1 + len(drafts.get(at, [])) for at in order],
        [True] * len(rows),
        drafts={place: drafts[at] for place, at in enumerate(order) if drafts.get(at)},
    )


@pytest.mark.parametrize(
    ("drafts", "shape"),
    [
        ({}, (4, 1)),
        ({at: [GUESSED] * 3 for at in range(3)}, (4, 4)),
        ({0: [7, 8], 1: [9]}, (8, 6)),
        ({0: [GUESSED] * 5, 2: [GUESSED]}, (3, 6)),
    ],
)
def test_a_captured_step_is_the_built_one(world, drafts, shape) -> None:
    rows, known, _ = world
    plan = plan_of(drafts, [6, 1, 4], known)
    built = build_step(plan, rows, BLOCK, CPU)
    size, queries = shape
    inputs = torch.from_numpy(step_inputs(plan, rows, size, queries))
    ids, batch = gather_step(inputs, rows, BLOCK)
    step = inputs_of(plan, rows, queries, ids, batch, inputs[0], torch.arange(size))
    at = step.sampled_tokens
    assert ids[at].tolist() == built.token_ids[built.sampled_tokens].tolist()
    assert batch.positions[at].tolist() == built.batch.positions[built.sampled_tokens].tolist()
    assert batch.slots[at].tolist() == built.batch.slots[built.sampled_tokens].tolist()
    for name in ("index", "rows", "positions"):
        assert getattr(step.samples, name).tolist() == getattr(built.samples, name).tolist(), name
    assert step.samples.device_rows.tolist() == built.samples.device_rows.tolist()
    others = torch.ones(size * queries, dtype=torch.bool).index_fill(0, at, False)
    assert (batch.slots[others] == -1).all(), "padding is written nowhere"
    count = len(plan.rows)
    assert (batch.seq_lens[count:] == 0).all()
    assert batch.seq_lens[:count].tolist() == [position + queries for position in plan.positions]
    assert (batch.num_tokens, batch.num_rows, batch.decodes) == (size * queries, size, size * (queries == 1))
    if drafts:
        tokens = torch.randint(0, 400, (len(at),), generator=torch.Generator().manual_seed(1))
        assert step.samples.drafts.kept(tokens).tolist() == built.samples.drafts.kept(tokens).tolist()


def test_guesses_are_verified_as_known_drafts_are(world) -> None:
    rows, known, _ = world
    guessed = plan_of({0: [GUESSED] * 4, 1: [GUESSED] * 2}, [5, 2, 3], known)
    drafts = {
        place: rows.guesses[guessed.rows[place], : len(draft)].tolist() for place, draft in guessed.drafts.items()
    }
    told = plan_of({}, [5, 2, 3], known)
    told.rows, told.positions, told.counts, told.drafts = guessed.rows, guessed.positions, guessed.counts, drafts
    one, other = build_step(guessed, rows, BLOCK, CPU), build_step(told, rows, BLOCK, CPU)
    assert one.token_ids.tolist() == other.token_ids.tolist()
    right = other.samples.drafts.drafted.copy()
    assert one.samples.drafts.kept(torch.from_numpy(right)).all()
    right[1] += 1
    tokens = torch.from_numpy(right)
    assert one.samples.drafts.kept(tokens).tolist() == other.samples.drafts.kept(tokens).tolist()


def test_shapes_stay_small() -> None:
    shapes = verify_shapes(256, 7, 8)
    assert {queries for _, queries in shapes} == {2, 3, 4, 6, 8}
    assert all(size * queries <= 128 for size, queries in shapes)
    assert verify_shapes(256, 0, 8) == []
    assert {queries for _, queries in verify_shapes(256, 4, 4)} == {2, 3, 4}
    assert graph_sizes(3) == [1, 2, 3]


@pytest.mark.parametrize("queries", [1, 2])
def test_where_guesses_stand(world, queries) -> None:
    rows, known, starts = world
    noise = Noise(8, 100, CPU)
    noise.admit(starts)
    place = Place(rows, noise, BLOCK, LENGTH, 100, on_device=False)
    numbers, first = torch.tensor([6, 8, 1]), torch.tensor([known[6], 0, known[1]])
    room = torch.tensor([known[6] + 1, 0, 64])
    ends = GuessEnds(place, numbers, first, torch.zeros(3, 2, dtype=torch.int64), None, room, drawn=True)
    batch = ends.batch(first, queries)
    slots = batch.slots.view(3, queries)
    for row, start in ((0, known[6]), (2, known[1])):
        for query in range(queries):
            at = start + query
            block = int(rows.block_tables[int(numbers[row]), at // BLOCK]) if at < int(room[row]) else 0
            assert int(slots[row, query]) == block * BLOCK + at % BLOCK
    assert (slots[1] < BLOCK).all(), "the padding row writes to nobody's block"
    assert batch.seq_lens.tolist() == [known[6] + queries, 0, known[1] + queries]
    assert batch.seq_lens_host.tolist() == batch.seq_lens.tolist()


def test_positions_on_the_device_draw_the_same_noise() -> None:
    random = np.random.default_rng(0)
    seeds, positions = random.integers(0, 2**64, 500, np.uint64), random.integers(0, 2**20, 500)
    keys = row_keys_on_device(torch.from_numpy(mixed_seeds(seeds)), torch.from_numpy(positions))
    assert np.array_equal(keys.numpy(), row_keys(seeds, positions))


def test_picks_are_the_samplers(world) -> None:
    """Rows that draw and greedy rows together."""
    from octavo.run.sampler import Sampler

    rows, _, starts = world
    sampler, noise = Sampler(100, 8, CPU), Noise(8, 100, CPU)
    for start in starts:
        sampler.admit(start)
    noise.admit(starts)
    place = Place(rows, noise, BLOCK, LENGTH, 100, on_device=False)
    numbers, positions = torch.arange(8), torch.arange(30, 38)
    logits = 3 * torch.randn(8, 130, generator=torch.Generator().manual_seed(2))
    ends = GuessEnds(place, numbers, positions, torch.zeros(8, 2), None, numbers, drawn=True)
    expected = sampler.sample(logits[:, :100].clone(), numbers.numpy(), positions.numpy()).tokens
    assert ends.pick(logits, positions).tolist() == expected.tolist()
    greedy = GuessEnds(place, numbers, positions, torch.zeros(8, 2), None, numbers, drawn=False)
    assert greedy.pick(logits, positions).tolist() == logits[:, :100].argmax(1).tolist()
