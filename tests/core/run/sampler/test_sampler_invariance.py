"""A request's tokens are its own: any batch, row and order, after reuse of a row, after preemption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler import Sampled, Sampler

V = 2000
Start = Callable[..., RowStart]
Build = Callable[..., Sampler]

REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 1500},
    {"temperature": 1.0, "top_k": 7, "top_p": 0.6, "min_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.8, "presence_penalty": 0.5, "logprobs": 3},
    {"temperature": 0.0, "frequency_penalty": 1.9, "logprobs": 0},
    {"temperature": 3.0, "allowed_token_ids": (1, 2, 3, 4), "bad_word_ids": [[1, 2], [4]]},
    {"temperature": 2.0, "min_tokens": 4, "allowed_token_ids": (5, 6, 7), "stop_ids": [5]},
]
PROMPTS = [[index + 1, index + 2, 1, 2, 3][: 2 + index % 4] for index in range(len(REQUESTS))]


def logits_for(request: int, position: int) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(request * 1000 + position)) * 4


class Replay:
    """Drives one sampler; remembers what each request has."""

    def __init__(self, sampler: Sampler, start: Start) -> None:
        self.sampler, self.start = sampler, start
        self.rows: dict[int, int] = {}
        self.known = {request: list(prompt) for request, prompt in enumerate(PROMPTS)}
        self.logprobs: dict[tuple[int, int], object] = {}

    def admit(self, request: int, row: int) -> None:
        self.rows[request] = row
        self.sampler.admit(
            self.start(
                row,
                self.known[request],
                prompt_length=len(PROMPTS[request]),
                seed=request * 17 - 40,
                **REQUESTS[request],
            )
        )

    def release(self, request: int) -> None:
        self.sampler.release(self.rows.pop(request))

    def step(self, requests: Sequence[int]) -> None:
        positions = [len(self.known[request]) for request in requests]
        logits = torch.stack([logits_for(*pair) for pair in zip(requests, positions, strict=True)])
        rows = np.array([self.rows[request] for request in requests])
        found = self.sampler.sample(logits, rows, np.array(positions))
        assert found.finite.all()
        for request, token in zip(requests, found.tokens.tolist(), strict=True):
            self.known[request].append(token)
        for place, entry in (found.logprobs.to_host() if found.logprobs else {}).items():
            self.logprobs[requests[place], positions[place]] = entry


@pytest.fixture
def reference(start: Start, sampler_of: Build) -> Replay:
    """Every request by itself, in row 0 of a fresh sampler, 12 tokens."""
    whole = Replay(sampler_of(V), start)
    for request in range(len(REQUESTS)):
        replay = Replay(sampler_of(V), start)
        replay.admit(request, 0)
        for _ in range(12):
            replay.step([request])
        whole.known[request] = replay.known[request]
        whole.logprobs |= replay.logprobs
    return whole


def test_any_batch_any_row_any_order(start: Start, sampler_of: Build, reference: Replay) -> None:
    random = np.random.default_rng(0)
    replay = Replay(sampler_of(V, max_rows=16), start)
    for request, row in enumerate(random.permutation(16)[: len(REQUESTS)].tolist()):
        replay.admit(request, row)
    while unfinished := [r for r in range(len(REQUESTS)) if len(replay.known[r]) < len(reference.known[r])]:
        chosen = random.permutation(unfinished)[: random.integers(1, len(unfinished) + 1)]
        replay.step(chosen.tolist())
    assert replay.known == reference.known
    assert replay.logprobs == reference.logprobs


def test_rows_are_reused_and_requests_preempted(start: Start, sampler_of: Build, reference: Replay) -> None:
    """Three rows for ten requests; after every step someone is put out and comes back later, in another row."""
    random = np.random.default_rng(1)
    replay = Replay(sampler_of(V, max_rows=3), start)
    free = [0, 1, 2]
    while unfinished := [r for r in range(len(REQUESTS)) if len(replay.known[r]) < len(reference.known[r])]:
        waiting = [request for request in unfinished if request not in replay.rows]
        for request in random.permutation(waiting)[: len(free)].tolist():
            replay.admit(request, free.pop(random.integers(len(free))))
        replay.step(list(replay.rows))
        done = [r for r in replay.rows if len(replay.known[r]) == len(reference.known[r])]
        victim = random.permutation(list(replay.rows))[:1].tolist()
        for request in set(done + victim):
            free.append(replay.rows[request])
            replay.release(request)
    assert replay.known == reference.known
    assert replay.logprobs == reference.logprobs


def test_admission_without_release_resets_a_row(start: Start, sampler_of: Build, reference: Replay) -> None:
    replay = Replay(sampler_of(V, max_rows=1), start)
    for request in range(len(REQUESTS)):
        replay.admit(request, 0)
        for _ in range(12):
            replay.step([request])
    assert replay.known == reference.known


def test_seed_matters_and_is_64_bits_wide(start: Start, sampler_of: Build) -> None:
    seeds = [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 2**64 - 1]
    logits = torch.zeros(len(seeds), V)
    sampler = sampler_of(V, *(start(row, seed=seed) for row, seed in enumerate(seeds)))
    draws = [
        tuple(column)
        for column in np.stack(
            [
                sampler.sample(logits.clone(), np.arange(len(seeds)), np.full(len(seeds), step)).tokens.numpy()
                for step in range(8)
            ]
        ).T.tolist()
    ]
    assert len(set(draws)) == len(seeds) - 1  # -1 and 2^64 - 1 are the same 64 bits
    assert draws[2] == draws[6]


def test_the_threads_do_not_matter(start: Start, sampler_of: Build, sample: Callable[..., Sampled]) -> None:
    logits = torch.randn(3, 49_152, generator=torch.Generator().manual_seed(5)) * 2
    sampler = sampler_of(49_152, start(0), start(1, top_p=0.9), start(2, top_p=0.999, seed=3))
    together = [sample(sampler, logits, [0, 1, 2], [step] * 3).tokens.tolist() for step in range(6)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        single = [
            [sample(sampler, logits[row : row + 1], [row], [step]).tokens.item() for row in range(3)]
            for step in range(6)
        ]
    finally:
        torch.set_num_threads(threads)
    assert single == together
