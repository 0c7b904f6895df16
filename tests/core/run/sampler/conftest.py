"""A sampler with rows admitted in one line, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.params import SamplingParams
from octavo.run.sampler import Sampled, Sampler

CPU = torch.device("cpu")


def start_of(
    row: int,
    tokens: Sequence[int] = (1, 2, 3),
    *,
    prompt_length: int | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    bad_word_ids: Sequence[Sequence[int]] = (),
    **params: Any,
) -> RowStart:
    return RowStart(
        row=row,
        tokens=list(tokens),
        prompt_length=len(tokens) if prompt_length is None else prompt_length,
        params=SamplingParams(**params),
        seed=seed,
        stop_ids=list(stop_ids),
        bad_word_ids=[list(word) for word in bad_word_ids],
    )


@pytest.fixture
def start() -> Callable[..., RowStart]:
    return start_of


@pytest.fixture
def sampler_of() -> Callable[..., Sampler]:
    """A sampler of ``vocab_size`` with the given rows admitted."""

    def build(vocab_size: int, *starts: RowStart, max_rows: int = 8, processors: Sequence[Any] = ()) -> Sampler:
        sampler = Sampler(vocab_size, max_rows, CPU, processors)
        for each in starts:
            sampler.admit(each)
        return sampler

    return build


@pytest.fixture
def sample() -> Callable[..., Sampled]:
    """Sample without spending the caller's logits."""

    def call(sampler: Sampler, logits: torch.Tensor, rows: Sequence[int], positions: Sequence[int]) -> Sampled:
        return sampler.sample(logits.clone(), np.array(rows, np.int64), np.array(positions, np.int64))

    return call
