"""The positions of drafts: what comes before them, which are kept, what a row gets."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from octavo.run.verify import NONE, Drafts, gather_results

CPU = torch.device("cpu")
DRAFTS = [[5, 6, 7], [], [8], [5, 5, 5, 5]]
FIRSTS = [0, 4, 5, 7]


def test_positions_lie_side_by_side():
    drafts = Drafts(DRAFTS, CPU)
    assert drafts.firsts.tolist() == FIRSTS
    assert drafts.places.tolist() == [0, 1, 2, 3, 0, 0, 1, 0, 1, 2, 3, 4]
    assert drafts.drafted.tolist() == [5, 6, 7, NONE, NONE, 8, NONE, 5, 5, 5, 5, NONE]


def test_a_draft_is_kept_up_to_its_first_wrong_token():
    drafts = Drafts(DRAFTS, CPU)
    #                 the second is wrong | none | right   | the first is wrong, later ones would be right
    tokens = torch.tensor([5, 9, 7, 1, 3, 8, 4, 6, 5, 5, 5, 5])
    kept = drafts.kept(tokens)
    assert kept.int().tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert drafts.last(kept).tolist() == [1, 4, 6, 7]
    last, accepted = gather_results(drafts, tokens.numpy(), kept.numpy(), np.array([2, 3, 5, 7]))
    assert last.tolist() == [9, 3, 4, 6]
    assert accepted == {2: [5], 5: [8]}


def test_random_drafts_against_a_loop():
    random = Random(3)
    for _ in range(200):
        guesses = [[random.randrange(3) for _ in range(random.randrange(5))] for _ in range(random.randint(1, 6))]
        drafts = Drafts(guesses, CPU)
        tokens = torch.tensor([random.randrange(3) for guess in guesses for _ in range(len(guess) + 1)])
        kept = drafts.kept(tokens)
        last, accepted = gather_results(drafts, tokens.numpy(), kept.numpy(), np.arange(len(guesses)))
        assert tokens[drafts.last(kept)].tolist() == last.tolist()
        at = 0
        for row, guess in enumerate(guesses):
            mine = tokens[at : at + len(guess) + 1].tolist()
            right = next((i for i, token in enumerate(guess) if token != mine[i]), len(guess))
            assert [*accepted.get(row, []), int(last[row])] == mine[: right + 1]
            assert kept[at : at + len(guess) + 1].tolist() == [place <= right for place in range(len(guess) + 1)]
            at += len(guess) + 1


def test_what_comes_before_a_position():
    drafts = Drafts(DRAFTS, CPU)
    places, tokens = drafts.before(np.array([2, 4, 6, 8]))
    assert (places.tolist(), tokens.tolist()) == ([0, 0, 2, 3], [5, 6, 8, 5])
    ends = torch.tensor([[1, 2], [3, 4], [1, 2]])
    assert drafts.shifted(ends, np.array([2, 4, 6])).tolist() == [[5, 6], [3, 4], [2, 8]]
    assert drafts.shifted(ends[:1], np.array([3])).tolist() == [[6, 7]]
