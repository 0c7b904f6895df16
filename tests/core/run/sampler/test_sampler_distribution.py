"""Sampled frequencies against the distribution that the parameters define, in float64, by chi-square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler import Sampler

V, ROWS, STEPS = 24, 2048, 32
PROMPT, OUTPUT = [1, 1, 2, 3], [3, 4, 4, 4, 5]
Start = Callable[..., RowStart]

CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 6},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"top_k": 9, "top_p": 0.85},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.03, "temperature": 1.3},
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.9, "frequency_penalty": 0.3},
    {"repetition_penalty": 0.8, "frequency_penalty": -0.2, "temperature": 0.9, "top_p": 0.9},
    {"logit_bias": {2: 1.5, 7: -3.0}, "allowed_token_ids": tuple(range(2, 15))},
    {"logit_bias": {2: 1.5}, "top_k": 5, "temperature": 1.5, "presence_penalty": 0.4},
]


def expected_distribution(logits: np.ndarray, params: Any) -> np.ndarray:
    """The chain of DESIGN in float64, one step after the other."""
    x = logits.astype(np.float64).copy()
    if params.allowed_token_ids is not None:
        x[[token for token in range(V) if token not in params.allowed_token_ids]] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    for token in set(PROMPT + OUTPUT):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(OUTPUT):
        x[token] -= params.presence_penalty + params.frequency_penalty * OUTPUT.count(token)
    p = np.exp(x / params.temperature - (x / params.temperature).max())
    p[p < params.min_p * p.max()] = 0
    order = np.argsort(-p)
    if params.top_k > 0:
        p[order[params.top_k :]] = 0
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= params.top_p * p.sum()]] = 0
    distribution: np.ndarray = p / p.sum()
    return distribution


def chi_square_limit(freedom: int) -> float:
    """The value exceeded once in 30,000 times (Wilson and Hilferty)."""
    return float(freedom * (1 - 2 / (9 * freedom) + 4 * np.sqrt(2 / (9 * freedom))) ** 3)


@pytest.mark.parametrize("params", CASES, ids=lambda case: "-".join(case) or "plain")
def test_frequencies(start: Start, sampler_of: Callable[..., Sampler], params: dict[str, Any]) -> None:
    """65,536 draws: 2,048 seeds times 32 positions, the same logits and the same history every time."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(len(params))) * 1.5
    tokens = PROMPT + OUTPUT
    starts = [start(row, tokens, prompt_length=len(PROMPT), seed=row, **params) for row in range(ROWS)]
    expected = expected_distribution(logits.numpy(), starts[0].params)
    counts = np.zeros(V)
    rows = np.arange(ROWS)
    sampler = sampler_of(V, *starts, max_rows=ROWS)
    sampler._remembering = ()  # the history that the penalties see stays as it was
    for step in range(STEPS):
        found = sampler.sample(logits.expand(ROWS, V).clone(), rows, np.full(ROWS, len(tokens) + step))
        counts += np.bincount(found.tokens.numpy(), minlength=V)
    assert counts.sum() == ROWS * STEPS
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    wanted = expected[possible] * counts.sum()
    chi = ((counts[possible] - wanted) ** 2 / wanted).sum()
    assert chi < chi_square_limit(int(possible.sum()) - 1)


def test_successive_tokens_are_independent(start: Start, sampler_of: Callable[..., Sampler]) -> None:
    """Pairs (token, next token) of one seed are as frequent as the product of the two."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    logits = torch.from_numpy(np.log(p)).float().expand(ROWS, 4)
    sampler = sampler_of(4, *(start(row, seed=row) for row in range(ROWS)), max_rows=ROWS)
    steps = np.stack(
        [
            sampler.sample(logits.clone(), np.arange(ROWS), np.full(ROWS, step)).tokens.numpy()
            for step in range(STEPS)
        ]
    )
    counts = np.bincount((steps[:-1] * 4 + steps[1:]).ravel(), minlength=16)
    wanted = np.outer(p, p).ravel() * counts.sum()
    assert ((counts - wanted) ** 2 / wanted).sum() < chi_square_limit(15)
    across = np.bincount((steps[:, :-1] * 4 + steps[:, 1:]).ravel(), minlength=16)  # neighbouring seeds
    wanted = np.outer(p, p).ravel() * across.sum()
    assert ((across - wanted) ** 2 / wanted).sum() < chi_square_limit(15)
