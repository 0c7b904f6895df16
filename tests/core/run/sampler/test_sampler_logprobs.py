"""Log-probabilities: of the raw distribution, in float64, for sampled tokens and for prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowLogprobs, RowStart
from octavo.run.sampler import Sampled, Sampler, logprobs

V = 300
Start = Callable[..., RowStart]
Build = Callable[..., Sampler]
Sample = Callable[..., Sampled]


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 4


def check(entry: RowLogprobs, logits: torch.Tensor, token: int, count: int) -> None:
    x = logits.double().numpy()
    expected = x - x.max() - np.log(np.exp(x - x.max()).sum())
    order = np.argsort(-expected)[:count]
    assert entry.token == token
    assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
    assert entry.rank == 1 + (expected > expected[token]).sum()
    assert entry.top_ids == order.tolist()
    assert entry.top_logprobs == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_raw_distribution_of_the_rows_that_asked(start: Start, sampler_of: Build, sample: Sample) -> None:
    """Bars, penalties and temperature choose another token; they do not change the numbers."""
    sampler = sampler_of(
        V,
        start(0, temperature=0.0, logprobs=2),
        start(1, temperature=0.0),
        start(2, temperature=0.5, top_k=3, repetition_penalty=2.0, logprobs=20, allowed_token_ids=(5, 6, 7)),
        start(3, temperature=2.0, logprobs=0),
    )
    logits = logits_of(4)
    order = [3, 1, 0, 2]
    found = sample(sampler, logits, order, [3] * 4)
    assert found.logprobs is not None
    entries = found.logprobs.to_host()
    assert sorted(entries) == [0, 2, 3]
    for place, count in ((0, 0), (2, 2), (3, 20)):
        check(entries[place], logits[place], int(found.tokens[place]), count)
    assert int(found.tokens[3]) in (5, 6, 7)
    assert entries[2].rank == 1


def test_none_where_nobody_asks(start: Start, sampler_of: Build, sample: Sample) -> None:
    sampler = sampler_of(V, start(0), start(1, logprobs=1))
    assert sample(sampler, logits_of(1), [0], [3]).logprobs is None


def test_logits_may_be_overwritten_before_they_are_read(start: Start, sampler_of: Build) -> None:
    sampler = sampler_of(V, start(0, logprobs=1, temperature=0.3, presence_penalty=2.0))
    raw = logits_of(1)
    logits = raw.clone()
    found = sampler.sample(logits, np.array([0]), np.array([3]))
    logits.fill_(7)
    assert found.logprobs is not None
    check(found.logprobs.to_host()[0], raw[0], int(found.tokens[0]), 1)


def test_ties_share_the_best_rank(start: Start, sampler_of: Build, sample: Sample) -> None:
    logits = torch.zeros(1, V)
    logits[0, [4, 9]] = 3
    sampler = sampler_of(V, start(0, logprobs=1, temperature=0.0, logit_bias={9: 1.0}))
    found = sample(sampler, logits, [0], [3])
    assert found.logprobs is not None
    entry = found.logprobs.to_host()[0]
    assert (entry.token, entry.rank) == (9, 1)


@pytest.mark.parametrize("chunk", [1 << 26, 3 * V])
def test_prompt(sampler_of: Build, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK", chunk)
    logits, targets = logits_of(10), torch.arange(10) * 7
    before = logits.clone()
    entries = sampler_of(V).prompt_logprobs(logits, targets, 4).to_host()
    assert torch.equal(logits, before)
    assert len(entries) == 10
    for index, entry in enumerate(entries):
        check(entry, logits[index], index * 7, 4)


def test_prompt_of_no_positions(sampler_of: Build) -> None:
    assert sampler_of(V).prompt_logprobs(torch.empty(0, V), torch.empty(0, dtype=torch.int64), 4).to_host() == []


def test_vocabulary_smaller_than_the_list(start: Start, sampler_of: Build, sample: Sample) -> None:
    found = sample(sampler_of(5, start(0, logprobs=20)), torch.zeros(1, 5), [0], [3])
    assert found.logprobs is not None
    assert sorted(found.logprobs.to_host()[0].top_ids) == [0, 1, 2, 3, 4]
