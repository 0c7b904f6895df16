"""The sampler on a GPU: the CPU's tokens, without ever waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.ops.noise import random_bits, row_keys, token_words
from octavo.run.sampler import Sampled, Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

V, STEPS = 32_000, 12
CPU, GPU = torch.device("cpu"), torch.device("cuda")
Start = Callable[..., RowStart]

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 5},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.2, "top_p": 0.9, "logprobs": 0},
    {"temperature": 1.0, "top_p": 0.9999, "top_k": 1500},
    {"temperature": 1.0, "top_k": 7, "top_p": 0.6, "min_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.8, "presence_penalty": 0.5, "logit_bias": {3: 2.0, 9: -1.0}},
    {"temperature": 0.0, "frequency_penalty": 1.9},
    {"temperature": 3.0, "allowed_token_ids": (1, 2, 3, 4), "bad_word_ids": [[1, 2], [4]]},
    {"temperature": 2.0, "min_tokens": 4, "allowed_token_ids": (5, 6, 7), "stop_ids": [5]},
]
ROWS = np.random.default_rng(0).permutation(16)[: len(KINDS)]


@contextmanager
def no_waiting() -> Iterator[None]:
    """A wait for the device is an error, as CUDA's own debug mode sees it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def admit_all(sampler: Sampler, start: Start) -> None:
    for row, (seed, kind) in zip(ROWS.tolist(), enumerate(KINDS), strict=True):
        sampler.admit(start(row, [1, 2, 1], prompt_length=2, seed=seed, **kind))


def logits_of(step: int) -> torch.Tensor:
    return torch.randn(len(KINDS), V, generator=torch.Generator().manual_seed(step)) * 4


def test_the_same_integers() -> None:
    seeds, positions = np.arange(-50, 50).astype(np.uint64), np.arange(100, dtype=np.int64) * 1001
    words, keys = torch.from_numpy(token_words(V)), torch.from_numpy(row_keys(seeds, positions))
    assert torch.equal(random_bits(words.to(GPU), keys.to(GPU)).cpu(), random_bits(words, keys))


def test_the_same_tokens_and_no_waiting(start: Start) -> None:
    on_gpu = [step.to(GPU) for step in map(logits_of, range(STEPS))]
    found: list[Sampled] = []
    sampler = Sampler(V, 16, GPU)
    with no_waiting():
        admit_all(sampler, start)
        for step, logits in enumerate(on_gpu):
            found.append(sampler.sample(logits, ROWS, np.full(len(KINDS), 3 + step)))
    reference = Sampler(V, 16, CPU)
    admit_all(reference, start)
    for step, result in enumerate(found):
        expected = reference.sample(logits_of(step), ROWS, np.full(len(KINDS), 3 + step))
        assert result.tokens.tolist() == expected.tokens.tolist()
        assert result.finite.all()
        assert result.logprobs is not None
        assert expected.logprobs is not None
        ours, theirs = result.logprobs.to_host(), expected.logprobs.to_host()
        assert ours.keys() == theirs.keys() == {0, 3}
        for place, entry in ours.items():
            other = theirs[place]
            assert (entry.token, entry.rank, entry.top_ids) == (other.token, other.rank, other.top_ids)
            assert entry.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert entry.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-4)


def test_prompt_logprobs_do_not_wait() -> None:
    logits = logits_of(0)
    targets = torch.arange(len(KINDS))
    on_gpu, gpu_targets = logits.to(GPU), targets.to(GPU)
    sampler = Sampler(V, 1, GPU)
    with no_waiting():
        pending = sampler.prompt_logprobs(on_gpu, gpu_targets, 3)
    for ours, theirs in zip(
        pending.to_host(), Sampler(V, 1, CPU).prompt_logprobs(logits, targets, 3).to_host(), strict=True
    ):
        assert (ours.token, ours.rank, ours.top_ids) == (theirs.token, theirs.rank, theirs.top_ids)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_poisoned_rows_do_not_stop_the_device(start: Start) -> None:
    sampler = Sampler(V, 16, GPU)
    admit_all(sampler, start)
    for value in (float("nan"), float("inf"), -float("inf")):
        logits = logits_of(0).to(GPU)
        logits[::2] = value
        result = sampler.sample(logits, ROWS, np.full(len(KINDS), 3))
        assert result.finite.tolist() == [place % 2 == 1 for place in range(len(KINDS))]
        assert ((result.tokens >= 0) & (result.tokens < V)).all()
