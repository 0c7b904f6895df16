"""min_p, top_k and top_p: which tokens stay, against Transformers and against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from octavo.contracts.executor import RowStart
from octavo.run.sampler import top
from octavo.run.sampler.min_p import MinP
from octavo.run.sampler.rows import Layout
from octavo.run.sampler.top import TopKTopP

CPU = torch.device("cpu")
Start = Callable[..., RowStart]


@pytest.fixture(params=["numpy", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's way of sorting and the accelerator's, which runs on the CPU as well."""
    if request.param == "torch":
        monkeypatch.setattr(top, "on_cpu", lambda device: False)


def logits_of(rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def truncated(logits: torch.Tensor, *starts: RowStart) -> torch.Tensor:
    """min_p, then top_k and top_p, on row i for the i-th start."""
    vocab_size, rows = logits.shape[1], len(starts)
    features = (MinP(rows), TopKTopP(vocab_size, rows, CPU))
    changed = logits.clone()
    for feature in features:
        for each in starts:
            feature.admit(each)
        feature.apply(changed, Layout(np.arange(rows), CPU))
    return changed


def by_float64(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which of ``logits`` [vocab] stay: the definition, token by token in falling order."""
    values = logits.double().numpy()
    probabilities = np.exp(values - values.max())
    alive = probabilities >= min_p * probabilities.max()
    order = [index for index in np.argsort(-values, kind="stable") if alive[index]]
    order = order[: top_k or None]
    total, reached = probabilities[order].sum(), 0.0
    kept = np.zeros(len(values), bool)
    for index in order:
        if reached >= top_p * total:
            break
        kept[index] = True
        reached += probabilities[index]
    return kept


@pytest.mark.parametrize("vocab_size", [60, 3000])
def test_each_alone_as_transformers(start: Start, vocab_size: int) -> None:
    logits = logits_of(1, vocab_size)
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"top_k": 1}, hf.TopKLogitsWarper(1)),
        ({"top_k": 40}, hf.TopKLogitsWarper(40)),
        ({"top_k": 2000}, hf.TopKLogitsWarper(2000)),
        ({"top_p": 1e-9}, hf.TopPLogitsWarper(1e-9)),
        ({"top_p": 0.5}, hf.TopPLogitsWarper(0.5)),
        ({"top_p": 0.9}, hf.TopPLogitsWarper(0.9)),
        ({"top_p": 0.9999}, hf.TopPLogitsWarper(0.9999)),
        ({"min_p": 0.02}, hf.MinPLogitsWarper(0.02)),
        ({"min_p": 1.0}, hf.MinPLogitsWarper(1.0)),
    ]
    for params, warper in cases:
        assert torch.equal(truncated(logits, start(0, **params)), warper(None, logits.clone())), params


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 0.7), (30, 0.95), (1500, 0.9), (2500, 0.999)])
def test_top_p_is_of_what_top_k_left(start: Start, top_k: int, top_p: float) -> None:
    logits = logits_of(1, 3000, 1)
    warpers = hf.LogitsProcessorList([hf.TopKLogitsWarper(top_k), hf.TopPLogitsWarper(top_p)])
    assert torch.equal(truncated(logits, start(0, top_k=top_k, top_p=top_p)), warpers(None, logits.clone()))


def test_random_mixtures_against_float64(start: Start) -> None:
    """Rows of every kind in one batch: each is treated as its own parameters say."""
    random = np.random.default_rng(0)
    logits = logits_of(64, 2000, 2)
    cases = [
        (
            int(random.choice([0, 1, 3, 50, 1024, 1025, 1999, 5000])),
            float(random.choice([1.0, 0.3, 0.8, 0.99])),
            float(random.choice([0.0, 0.0, 0.1, 1e-4])),
        )
        for _ in range(64)
    ]
    starts = [start(row, top_k=k, top_p=p, min_p=m) for row, (k, p, m) in enumerate(cases)]
    found = truncated(logits, *starts)
    for row, case in enumerate(cases):
        kept = by_float64(logits[row], *case)
        assert np.array_equal(np.isfinite(found[row].numpy()), kept), case
        assert torch.equal(found[row][torch.from_numpy(kept)], logits[row][torch.from_numpy(kept)])


def test_flat_nucleus_wider_than_the_first_look(start: Start) -> None:
    """More tokens than the CPU path looks at first; in the same batch a row that needs few."""
    logits = logits_of(2, 5000, 3) * 0.1
    logits[1, 17] = 20
    found = truncated(logits, start(0, top_p=0.9), start(1, top_p=0.9))
    assert np.array_equal(np.isfinite(found[0].numpy()), by_float64(logits[0], 0, 0.9, 0.0))
    assert torch.isfinite(found[1]).nonzero().flatten().tolist() == [17]


def test_equals_stay_together(start: Start) -> None:
    """As probable as the last one kept: kept too, whatever the order of the vocabulary."""
    logits = torch.zeros(1, 40)
    logits[0, 5] = 2
    logits[0, [30, 8, 21]] = 1
    cases: list[dict[str, Any]] = [{"top_k": 2}, {"top_p": 0.2}, {"top_k": 3, "top_p": 0.9}]
    for params in cases:
        kept = torch.isfinite(truncated(logits, start(0, **params))[0]).nonzero().flatten().tolist()
        assert kept == [5, 8, 21, 30], params


def test_barred_tokens_do_not_come_back(start: Start) -> None:
    logits = logits_of(3, 100, 4)
    logits[:, 3:] = -torch.inf
    found = truncated(logits, start(0, top_k=50), start(1, top_p=0.999999), start(2, top_k=10, top_p=0.999999))
    assert torch.equal(torch.isfinite(found), torch.isfinite(logits))
