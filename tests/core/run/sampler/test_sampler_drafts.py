"""Drafts change nothing: every request gets the tokens, log-probabilities and state that it gets without them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler import Sampler
from octavo.run.verify import Drafts, gather_results

V = 60
LENGTH = 40
Start = Callable[..., RowStart]
Build = Callable[..., Sampler]

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0, "logprobs": 3},
    "top_k": {"temperature": 0.8, "top_k": 8},
    "top_p": {"temperature": 1.2, "top_p": 0.9},
    "min_p": {"temperature": 1.0, "min_p": 0.05, "top_k": 30, "top_p": 0.95},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.5, "presence_penalty": 1.0, "logprobs": 0},
    "greedy penalties": {"temperature": 0.0, "frequency_penalty": 1.9, "repetition_penalty": 1.3},
    "bad words": {"temperature": 0.6, "bad_word_ids": [[7], [3, 4], [1, 2, 3, 5], [9, 9]]},
    "bias": {"temperature": 1.0, "logit_bias": {3: 4.0, 5: -100.0}},
    "allowed": {"temperature": 2.0, "allowed_token_ids": (1, 2, 3, 4), "bad_word_ids": [[1, 2], [4]]},
    "min tokens": {"temperature": 1.0, "allowed_token_ids": (5, 6, 7), "min_tokens": 9, "stop_ids": [5]},
    "processor": {"temperature": 1.0, "extra": {"forbid": True}},
}
NAMES = list(REQUESTS)


class Forbid:
    """Bars the token that equals the number of tokens accepted so far only where it is told to; counts accepts."""

    def __init__(self) -> None:
        self.heard: dict[int, list[int]] = {}

    def validate(self, params: Any) -> None: ...

    def admit(self, row: int, params: Any, prompt: list[int], output: list[int]) -> bool:
        self.heard[row] = []
        return bool(params.extra)

    def release(self, row: int) -> None: ...

    def apply(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        assert len(logits) == len(rows)
        logits[:, 11] = -torch.inf
        return logits

    def accept(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            self.heard[row].append(token)


def logits_after(row: int, known: list[int]) -> torch.Tensor:
    """A "model": few likely tokens, depending on the last one and the position."""
    seed = row * 100_000 + len(known) * 100 + known[-1]
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


def admitted(start: Start, sampler_of: Build, processor: Forbid) -> Sampler:
    starts = [start(row, [1, 2], seed=row, **REQUESTS[name]) for row, name in enumerate(NAMES)]
    return sampler_of(V, *starts, max_rows=len(NAMES), processors=[processor])


@pytest.fixture
def plain(start: Start, sampler_of: Build) -> tuple[list[list[int]], list[list[Any]]]:
    sampler, rows = admitted(start, sampler_of, Forbid()), np.arange(len(NAMES))
    known: list[list[int]] = [[1, 2] for _ in NAMES]
    scores: list[list[Any]] = [[] for _ in NAMES]
    for position in range(2, 2 + LENGTH):
        logits = torch.stack([logits_after(row, known[row]) for row in rows.tolist()])
        found = sampler.sample(logits, rows, np.full(len(rows), position))
        assert found.finite.all()
        for row, token in enumerate(found.tokens.tolist()):
            known[row].append(token)
        for row, entry in (found.logprobs.to_host() if found.logprobs else {}).items():
            scores[row].append(entry)
    return known, scores


@pytest.mark.parametrize("rightness", [0.0, 0.7, 1.0])
def test_tokens_and_logprobs_are_those_without_drafts(plain, rightness, start, sampler_of) -> None:
    expected, expected_scores = plain
    random, processor = Random(rightness), Forbid()
    sampler = admitted(start, sampler_of, processor)
    known: list[list[int]] = [[1, 2] for _ in NAMES]
    scores: list[list[Any]] = [[] for _ in NAMES]
    while any(len(tokens) < 2 + LENGTH for tokens in known):
        rows = [row for row in range(len(NAMES)) if len(known[row]) < 2 + LENGTH and random.random() < 0.8]
        if not rows:
            continue
        guesses = []
        for row in rows:
            done = len(known[row])
            right = expected[row][done : done + random.randrange(6)][: 1 + LENGTH - done]
            guesses.append([token if random.random() < rightness else random.randrange(V) for token in right])
        drafts = Drafts(guesses, torch.device("cpu"))
        ahead = [
            (row, known[row] + guess[:i])
            for row, guess in zip(rows, guesses, strict=True)
            for i in range(len(guess) + 1)
        ]
        logits = torch.stack([logits_after(row, tokens) for row, tokens in ahead])
        numbers = np.array([row for row, _ in ahead])
        found = sampler.sample(logits, numbers, np.array([len(tokens) for _, tokens in ahead]), drafts)
        assert found.finite.all()
        kept = found.kept.numpy()
        last, accepted = gather_results(drafts, found.tokens.numpy(), kept, np.array(rows))
        for row, token in zip(rows, last.tolist(), strict=True):
            known[row] += [*accepted.get(row, []), token]
        for at, entry in (found.logprobs.to_host() if found.logprobs else {}).items():
            if kept[at]:
                scores[numbers[at]].append(entry)
    for row, name in enumerate(NAMES):
        assert known[row][: 2 + LENGTH] == expected[row], name
        assert scores[row][:LENGTH] == expected_scores[row], name
    heard = processor.heard[NAMES.index("processor")]
    assert heard == known[NAMES.index("processor")][2:]


def test_barring_everything_behind_a_wrong_token_harms_nobody(start, sampler_of) -> None:
    """After the drafted 1, all allowed tokens are bad words; but 1 is wrong, so nobody will stand there."""
    words = [[1, 1], [1, 2]]
    sampler = sampler_of(4, start(0, [3], temperature=0.0, allowed_token_ids=(1, 2), bad_word_ids=words))
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 0.0]])
    found = sampler.sample(logits, np.array([0, 0]), np.array([1, 2]), Drafts([[1]], torch.device("cpu")))
    assert found.tokens[0] == 2
    assert found.kept.tolist() == [True, False]
    assert found.finite.all()


def test_everything_barred_where_somebody_stands_is_a_failure(start, sampler_of) -> None:
    words = [[2, 1], [2, 2]]
    sampler = sampler_of(4, start(0, [3], temperature=0.0, allowed_token_ids=(1, 2), bad_word_ids=words))
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 0.0]])
    found = sampler.sample(logits, np.array([0, 0]), np.array([1, 2]), Drafts([[2]], torch.device("cpu")))
    assert found.finite.tolist() == [True, False]
