"""Tokens of verified drafts are distributed as the model says: chi-square over 200,000 of them, for each option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.params import SamplingParams
from octavo.run.sampler import Sampler
from octavo.run.verify import Drafts

CPU = torch.device("cpu")
VOCAB, ROWS, FIRST = 12, 4000, 3  # FIRST: the only token of every prompt
LOGITS = np.random.default_rng(5).normal(0, 1.5, (VOCAB, VOCAB)).astype(np.float32)  # by the token before


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def truncated(probabilities: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    order = np.argsort(-probabilities)
    kept = np.ones(VOCAB, bool)
    kept &= probabilities >= min_p * probabilities.max()
    left = np.where(kept, probabilities, 0)
    if top_k:
        kept &= probabilities >= probabilities[order[top_k - 1]]
        left = np.where(kept, probabilities, 0)
    left = left / left.sum()
    mass = np.cumsum(left[order]) - left[order]
    kept[order[mass >= top_p]] = False
    left = np.where(kept, probabilities, 0)
    return left / left.sum()


def biased(scores: np.ndarray, _: list[int]) -> np.ndarray:
    scores = scores.copy()
    scores[[2, 5]] += [1.5, -2.0]
    return scores


def penalised(scores: np.ndarray, outputs: list[int]) -> np.ndarray:
    scores = scores.copy()
    for token in {FIRST, *outputs}:
        scores[token] = scores[token] / 1.3 if scores[token] > 0 else scores[token] * 1.3
    for token in outputs:
        scores[token] -= 0.4
    for token in set(outputs):
        scores[token] -= 0.3
    return scores


def same(scores: np.ndarray, _: list[int]) -> np.ndarray:
    return scores


OPTIONS: dict[str, tuple[dict[str, Any], Any, Any, float]] = {
    "plain": ({}, same, truncated, 1.0),
    "temperature": ({"temperature": 0.6}, same, truncated, 0.6),
    "top_k": ({"top_k": 4}, same, lambda p: truncated(p, top_k=4), 1.0),
    "top_p": ({"top_p": 0.8}, same, lambda p: truncated(p, top_p=0.8), 1.0),
    "min_p": ({"min_p": 0.1}, same, lambda p: truncated(p, min_p=0.1), 1.0),
    "all of them": (
        {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.02},
        same,
        lambda p: truncated(p, 6, 0.9, 0.02),
        1.3,
    ),
    "bias": ({"logit_bias": {2: 1.5, 5: -2.0}}, biased, truncated, 1.0),
    "penalties": (
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
        penalised,
        truncated,
        1.0,
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_distributed_as_the_model_says(name: str) -> None:
    given, change, cut, temperature = OPTIONS[name]
    params = SamplingParams(**{"temperature": 1.0, **given})
    firsts, seconds = np.zeros(VOCAB), np.zeros((VOCAB, VOCAB))
    random = np.random.default_rng(1)
    sampler = Sampler(VOCAB, ROWS, CPU)
    rows = np.arange(ROWS)
    turns = 6 if name == "penalties" else 50  # where rows must be admitted again each time
    for turn in range(turns):
        if turn == 0 or name == "penalties":  # penalties remember what was sampled
            for row in range(ROWS):
                sampler.admit(RowStart(row, [FIRST], 1, params, 7919 * turn + 31 * row, [], []))
        guesses = random.choice(VOCAB, (ROWS, 2), p=softmax(LOGITS[FIRST]))
        drafts = Drafts(guesses.tolist(), CPU)
        before = np.column_stack([np.full(ROWS, FIRST), guesses]).reshape(-1)
        positions = 1 + 3 * turn + np.tile(np.arange(3), ROWS)
        logits = torch.from_numpy(LOGITS[before].copy())
        sampled = sampler.sample(logits, np.repeat(rows, 3), positions, drafts)
        assert sampled.kept is not None
        tokens, kept = sampled.tokens.view(ROWS, 3).numpy(), sampled.kept.view(ROWS, 3).numpy()
        firsts += np.bincount(tokens[:, 0], minlength=VOCAB)
        went_on = kept[:, 1]
        np.add.at(seconds, (tokens[went_on, 0], tokens[went_on, 1]), 1)
    assert firsts.sum() == turns * ROWS
    assert seconds.sum() > 0.1 * turns * ROWS
    check(firsts, cut(softmax(change(LOGITS[FIRST], []) / temperature)))
    for first in np.flatnonzero(seconds.sum(1) > 400):
        check(seconds[first], cut(softmax(change(LOGITS[first], [int(first)]) / temperature)))


def check(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square at about five standard deviations; tokens that were cut never came."""
    assert not counts[probabilities == 0].any()
    expected = counts.sum() * probabilities
    possible = expected > 0
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 10
