"""Bars, bias and penalties against Transformers' processors and against formulas in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from octavo.contracts.executor import RowStart
from octavo.run.sampler import Sampled, Sampler
from octavo.run.sampler.allowed import AllowedTokens
from octavo.run.sampler.bad_words import BadWords
from octavo.run.sampler.bias import LogitBias
from octavo.run.sampler.feature import Modifier
from octavo.run.sampler.min_tokens import MinTokens
from octavo.run.sampler.penalties import Penalties
from octavo.run.sampler.rows import Layout

V = 50
CPU = torch.device("cpu")
Start = Callable[..., RowStart]
Build = Callable[..., Sampler]
Sample = Callable[..., Sampled]


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 4


def applied(
    feature: Modifier, starts: Sequence[RowStart], logits: torch.Tensor, order: Sequence[int]
) -> torch.Tensor:
    """``logits`` of the rows in ``order`` after ``feature``; each row samples its next token."""
    for each in starts:
        feature.admit(each)
    lengths = {each.row: len(each.tokens) for each in starts}
    rows = np.array(order, np.int64)
    changed = logits.clone()
    feature.apply(changed, Layout(rows, CPU), np.array([lengths[row] for row in order], np.int64))
    return changed


def random_tokens(count: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, V, count)]


def test_repetition_as_transformers(start: Start) -> None:
    starts = [
        start(row, random_tokens(30, row), prompt_length=20, repetition_penalty=p)
        for row, p in enumerate((1.3, 0.7, 1.0, 5.0))
    ]
    logits = logits_of(4)
    found = applied(Penalties(V, 4, CPU), starts, logits, [3, 1, 2, 0])
    for place, row in enumerate([3, 1, 2, 0]):
        processor = hf.RepetitionPenaltyLogitsProcessor(starts[row].params.repetition_penalty)
        expected = processor(torch.tensor([starts[row].tokens]), logits[place : place + 1].clone())
        torch.testing.assert_close(found[place : place + 1], expected, rtol=1e-6, atol=0)


def test_presence_and_frequency_by_formula(start: Start) -> None:
    output = random_tokens(40, 1)
    starts = [start(0, [7, 7, 8, *output], prompt_length=3, presence_penalty=0.6, frequency_penalty=-1.25)]
    logits = logits_of(1)
    found = applied(Penalties(V, 1, CPU), starts, logits, [0])
    counts = np.bincount(output, minlength=V)
    expected = logits[0].double().numpy() - -1.25 * counts - 0.6 * (counts > 0)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6, atol=1e-5)


def test_penalties_together_and_after_accept(start: Start) -> None:
    """Repetition first, over prompt and outputs; then the others, over outputs; counts follow what is sampled."""
    penalties = Penalties(V, 4, CPU)
    penalties.admit(start(2, [5, 6], repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25))
    penalties.admit(start(1, [5, 6]))
    layout = Layout(np.array([1, 2]), CPU)
    for token in (9, 9, 5):
        penalties.accept(layout, torch.tensor([3, token]))
    logits = logits_of(2)
    changed = logits.clone()
    assert penalties.apply(changed, layout, np.array([5, 5]))
    assert torch.equal(changed[0], logits[0])
    expected = logits[1].double().numpy().copy()
    seen = [5, 6, 9]
    expected[seen] = np.where(expected[seen] > 0, expected[seen] / 1.5, expected[seen] * 1.5)
    expected[9] -= 2 * 0.25 + 0.5
    expected[5] -= 0.25 + 0.5
    np.testing.assert_allclose(changed[1].numpy(), expected, rtol=1e-6, atol=1e-5)


def test_bad_words_as_transformers(start: Start) -> None:
    words = [[3], [4, 5], [6, 7, 8], [9, 5], [1, 2, 3, 4], [6, 7, 9], [8, 8]]
    ends = [[4], [6, 7], [9], [1, 2, 3], [0, 1, 2], [6], [8], [3, 4]]
    starts = [start(row, [11, *end], bad_word_ids=words) for row, end in enumerate(ends)]
    starts.append(start(8, [8]))
    logits = logits_of(9)
    found = applied(BadWords(V, 9, CPU), starts, logits, range(9))
    processor = hf.NoBadWordsLogitsProcessor(words, eos_token_id=49)
    for row, end in enumerate(ends):
        expected = processor(torch.tensor([[11, *end]]), logits[row : row + 1].clone())
        assert torch.equal(found[row : row + 1], expected), end
    assert torch.equal(found[8], logits[8])


def test_bad_words_follow_tokens_on_the_device(start: Start) -> None:
    """Rows with words of different lengths, admitted one after the other, keep their own ends."""
    feature = BadWords(V, 4, CPU)
    feature.admit(start(0, [1], bad_word_ids=[[10, 11]]))
    feature.accept(Layout(np.array([0]), CPU), torch.tensor([10]))
    feature.admit(start(3, [20, 21], prompt_length=1, bad_word_ids=[[20, 21, 22, 23], [9]]))
    layout = Layout(np.array([3, 0]), CPU)

    def barred() -> list[list[int]]:
        changed = torch.zeros(2, V)
        feature.apply(changed, layout, np.array([0, 0]))
        return [torch.isinf(row).nonzero().flatten().tolist() for row in changed]

    assert barred() == [[9], [11]]
    feature.accept(layout, torch.tensor([22, 10]))
    assert barred() == [[9, 23], [11]]
    feature.accept(layout, torch.tensor([22, 12]))
    assert barred() == [[9], []]


def test_min_tokens_as_transformers(start: Start) -> None:
    prompt, stop_ids = [1, 2, 3, 4], [7, 30]
    feature = MinTokens(V, 8, CPU)
    processor = hf.MinNewTokensLengthLogitsProcessor(4, 3, eos_token_id=stop_ids)
    for outputs in range(5):
        tokens = prompt + [5] * outputs
        logits = logits_of(2, outputs)
        starts = [start(0, tokens, prompt_length=4, min_tokens=3, stop_ids=[*stop_ids, V + 3])]
        starts.append(start(5, tokens, prompt_length=4, stop_ids=stop_ids))
        found = applied(feature, starts, logits, [0, 5])
        assert torch.equal(found[:1], processor(torch.tensor([tokens]), logits[:1].clone())), outputs
        assert torch.equal(found[1], logits[1])


def test_allowed_and_bias(start: Start) -> None:
    logits = logits_of(3)
    starts = [start(0, allowed_token_ids=(4, 40, 4)), start(1), start(2, allowed_token_ids=(0,))]
    found = applied(AllowedTokens(V, 3, CPU), starts, logits, [2, 1, 0])
    assert torch.equal(found[1], logits[1])
    for place, ids in ((0, [0]), (2, [4, 40])):
        assert torch.equal(found[place, ids], logits[place, ids])
        assert torch.isinf(found[place]).sum() == V - len(ids)

    starts = [start(0, logit_bias={3: -100.0, 4: 2.5}), start(1), start(2, logit_bias={49: 100.0})]
    expected = logits.clone()
    expected[1, 3] -= 100
    expected[1, 4] += 2.5
    expected[2, 49] += 100
    assert torch.equal(applied(LogitBias(V, 3, CPU), starts, logits, [1, 0, 2]), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_everything_at_once_equals_transformers_greedily(
    start: Start, sampler_of: Build, sample: Sample, temperature: float
) -> None:
    """A greedy generation of 30 tokens with bars and penalties, and the same with top_k=1 at a temperature."""
    prompt, words, stop_ids = random_tokens(12, 3), [[1, 2], [3], [4, 5, 6]], [0, 9]
    params: dict[str, Any] = {"temperature": temperature, "repetition_penalty": 1.2, "min_tokens": 10}
    if temperature:
        params["top_k"] = 1
    sampler = sampler_of(V, start(4, prompt, stop_ids=stop_ids, bad_word_ids=words, **params))
    processors = hf.LogitsProcessorList(
        [
            hf.NoBadWordsLogitsProcessor(words, eos_token_id=49),
            hf.MinNewTokensLengthLogitsProcessor(len(prompt), 10, eos_token_id=stop_ids),
            hf.RepetitionPenaltyLogitsProcessor(1.2),
        ]
    )
    known = list(prompt)
    for step in range(30):
        logits = logits_of(1, 100 + step)
        expected = int(processors(torch.tensor([known]), logits.clone()).argmax())
        found = sample(sampler, logits, [4], [len(known)])
        assert found.tokens.tolist() == [expected]
        assert found.finite.tolist() == [True]
        known.append(expected)


def test_greedy_takes_the_first_of_equals(start: Start, sampler_of: Build, sample: Sample) -> None:
    sampler = sampler_of(V, start(0, temperature=0.0), start(1, temperature=0.0, logit_bias={1: 1.0}))
    logits = torch.zeros(2, V)
    logits[:, [10, 20]] = 5
    assert sample(sampler, logits, [0, 1], [3, 3]).tokens.tolist() == [10, 10]
