"""What may not hurt: logits that are not finite, bad ids, plugins that fail; and no waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from octavo.contracts.executor import RowStart
from octavo.errors import RequestError
from octavo.params import SamplingParams
from octavo.run.sampler import Sampled, Sampler, top

V = 64
INF = float("inf")
Start = Callable[..., RowStart]
Build = Callable[..., Sampler]
Sample = Callable[..., Sampled]

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"top_k": 5},
    {"top_p": 0.5},
    {"top_k": 5, "top_p": 0.5, "min_p": 0.1},
    {"min_p": 0.1, "repetition_penalty": 1.5, "frequency_penalty": 1.0, "logit_bias": {3: 1.0}},
    {"temperature": 0.0, "allowed_token_ids": (3, 4), "bad_word_ids": [[3], [1, 4]], "logprobs": 4},
    {"top_p": 0.9, "min_tokens": 5, "stop_ids": [9], "logprobs": 1},
]


@pytest.mark.parametrize("poison", ["nan", "inf", "all -inf", "all nan", "nan and inf"])
def test_not_finite(start: Start, sampler_of: Build, sample: Sample, poison: str) -> None:
    """The poisoned row is told, its token is in range, and its neighbours get what they get without it."""
    sampler = sampler_of(V, *(start(row, seed=row, **kind) for row, kind in enumerate(KINDS)))
    good = torch.randn(len(KINDS), V, generator=torch.Generator().manual_seed(0))
    rows = list(range(len(KINDS)))
    for bad in rows:
        for each in rows:
            sampler.admit(start(each, seed=each, **KINDS[each]))
        expected = sample(sampler, good, rows, [3] * len(rows))
        assert expected.finite.all()
        logits = good.clone()
        if "all" in poison:
            logits[bad] = -INF if "inf" in poison else float("nan")
        if "nan" in poison:
            logits[bad, 17] = float("nan")
        if poison in ("inf", "nan and inf"):
            logits[bad, 30] = INF
        for each in rows:
            sampler.admit(start(each, seed=each, **KINDS[each]))
        found = sample(sampler, logits, rows, [3] * len(rows))
        assert found.finite.tolist() == [row != bad for row in rows]
        assert 0 <= int(found.tokens[bad]) < V
        assert found.tokens[torch.arange(len(rows)) != bad].equal(expected.tokens[torch.arange(len(rows)) != bad])
        if found.logprobs is not None:
            found.logprobs.to_host()


def test_minus_infinity_somewhere_is_finite(start: Start, sampler_of: Build, sample: Sample) -> None:
    logits = torch.full((2, V), -INF)
    logits[:, 11] = 0
    found = sample(sampler_of(V, start(0), start(1, temperature=0.0)), logits, [0, 1], [3, 3])
    assert (found.tokens.tolist(), found.finite.tolist()) == ([11, 11], [True, True])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_everything_barred_is_told(start: Start, sampler_of: Build, sample: Sample, temperature: float) -> None:
    sampler = sampler_of(V, start(0, temperature=temperature, allowed_token_ids=(5,), bad_word_ids=[[5]]), start(1))
    assert sample(sampler, torch.zeros(2, V), [0, 1], [3, 3]).finite.tolist() == [False, True]


def test_extreme_parameters(start: Start, sampler_of: Build, sample: Sample) -> None:
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(1)) * 1e4
    starts = [
        start(0, temperature=2e-5),
        start(1, temperature=100.0, repetition_penalty=1e6),
        start(2, top_p=5e-324),
        start(3, top_k=10**12, min_p=1.0),
        start(4, repetition_penalty=1e-6, top_k=1),
    ]
    found = sample(sampler_of(V, *starts), logits, range(5), [3] * 5)
    assert found.finite.all()
    for row in (0, 2, 3):
        assert int(found.tokens[row]) == int(logits[row].argmax())


def test_empty_batch(sampler_of: Build, sample: Sample) -> None:
    found = sample(sampler_of(V), torch.empty(0, V), [], [])
    assert (found.tokens.tolist(), found.finite.tolist(), found.logprobs) == ([], [], None)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """After the call, whatever would wait for a GPU raises; sorting goes the accelerator's way."""

    def arm() -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a device tensor was read on the host")

        monkeypatch.setattr(top, "on_cpu", lambda device: False)
        readers = ("item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique")
        for name in (*readers, "__bool__", "__int__", "__float__", "__index__", "__array__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
        for name in ("nonzero", "masked_select", "unique", "equal", "allclose"):
            monkeypatch.setattr(torch, name, refuse)

    yield arm
    monkeypatch.undo()


def test_nothing_waits_for_the_device(
    start: Start, sampler_of: Build, no_waiting: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = sampler_of(V, processors=[Halve()])
    plain = torch.Tensor.__getitem__

    def no_masks(tensor: torch.Tensor, index: Any) -> torch.Tensor:
        for part in index if isinstance(index, tuple) else (index,):
            assert not (isinstance(part, torch.Tensor) and part.dtype == torch.bool), "boolean-mask indexing"
        return plain(tensor, index)

    logits = torch.randn(len(KINDS), V)
    no_waiting()
    monkeypatch.setattr(torch.Tensor, "__getitem__", no_masks)
    for row, kind in enumerate(KINDS):
        sampler.admit(start(row, seed=row, extra={"halve": True}, **kind))
    for step in range(3):
        found = sampler.sample(logits.clone(), np.arange(len(KINDS)), np.full(len(KINDS), 3 + step))
        sampler.sample(logits[:2].clone(), np.array([5, 2]), np.full(2, 3))
    pending = sampler.prompt_logprobs(logits, torch.zeros(len(KINDS), dtype=torch.int64), 3)
    monkeypatch.undo()
    assert found.finite.all()
    assert len(pending.to_host()) == len(KINDS)


def test_plain_rows_cost_one_pass(start: Start, sampler_of: Build) -> None:
    """Greedy rows: the maximum and nothing else of the vocabulary's size. With a temperature: no sort."""

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.wide: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(arg, torch.Tensor) and arg.shape[-1:] == (V,) for arg in args):
                self.wide.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    starts = [start(0, temperature=0.0), start(1, temperature=0.0), start(2), start(3), start(4, top_p=0.5)]
    sampler = sampler_of(V, *starts)
    for rows, greedy in (([0, 1], True), ([2, 3], False)):
        with Calls() as calls:
            sampler.sample(torch.randn(2, V), np.array(rows), np.array([3, 3]))
        assert not {"sort", "topk", "softmax", "_softmax", "_log_softmax"} & set(calls.wide)
        assert (calls.wide == ["max"]) == greedy


def test_bad_ids_are_refused(start: Start, sampler_of: Build) -> None:
    sampler = sampler_of(V)
    cases = [
        (start(0, stop_token_ids=(V,)), "stop_token_ids"),
        (start(0, allowed_token_ids=(-1,)), "allowed_token_ids"),
        (start(0, logit_bias={V: 1.0}), "logit_bias"),
        (start(0, [1, V]), "prompt"),
        (start(0, [1, -1]), "prompt"),
        (start(0, [1, 2**70]), "prompt"),
        (start(0, bad_word_ids=[[1, V]]), "bad_words"),
        (start(0, bad_word_ids=[[1] * 600, [2] * 600]), "bad_words"),
        (start(0, allowed_token_ids=(5,), min_tokens=2, stop_ids=[5, 6]), "allowed_token_ids"),
        (start(0, [1, 2], prompt_length=3), None),
    ]
    for bad, param in cases:
        for call in (sampler.validate, sampler.admit):
            with pytest.raises(RequestError) as caught:
                call(bad)
            assert caught.value.param == param
    with pytest.raises(ValueError, match="Row 8"):
        sampler.admit(start(8))
    sampler.validate(start(10**6, stop_ids=[V + 5], min_tokens=1))


class Halve:
    """Favours token 2; counts what it is told."""

    def __init__(self) -> None:
        self.accepted: dict[int, list[int]] = {}

    def validate(self, params: SamplingParams) -> None:
        if (params.extra or {}).get("halve") == "badly":
            raise RequestError("halve must be true or false.", param="extra")

    def admit(self, row: int, params: SamplingParams, prompt: list[int], output: list[int]) -> bool:
        self.accepted[row] = list(output)
        return bool((params.extra or {}).get("halve"))

    def release(self, row: int) -> None:
        self.accepted.pop(row)

    def apply(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        return logits / 2

    def accept(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        assert rows.shape == tokens.shape


class Recording(Halve):
    def apply(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        assert logits.shape == (len(rows), V)
        logits[:, [row + 10 for row in rows]] += 1000
        return logits

    def accept(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            self.accepted[row].append(token)


class Broken(Halve):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def admit(self, row: int, params: SamplingParams, prompt: list[int], output: list[int]) -> bool:
        if self.where == "admit" and params.extra:
            raise KeyError("admit")
        return super().admit(row, params, prompt, output)

    def apply(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        if self.where == "apply":
            raise ZeroDivisionError("apply")
        return logits[:, :3] if self.where == "shape" else logits

    def accept(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        if self.where == "accept":
            raise ZeroDivisionError("accept")

    def release(self, row: int) -> None:
        raise ZeroDivisionError("release")


def test_processors_get_their_rows_and_tokens(start: Start, sampler_of: Build, sample: Sample) -> None:
    recording = Recording()
    asks = {"halve": True}
    starts = [
        start(4, [1, 8, 9], prompt_length=1, extra=asks, temperature=0.0),
        start(2, temperature=0.0),
        start(6, extra=asks, temperature=0.0, logprobs=1),
    ]
    sampler = sampler_of(V, *starts, processors=[Halve(), recording])
    logits = torch.zeros(3, V)
    logits[:, 50] = 9
    found = sample(sampler, logits, [6, 2, 4], [3, 3, 3])
    # Both asking rows are given to one call, which favours tokens 16 and 14: the first of equals wins.
    assert found.tokens.tolist() == [14, 50, 14]
    assert recording.accepted == {4: [8, 9, 14], 2: [], 6: [14]}
    assert found.logprobs is not None
    assert found.logprobs.to_host()[0].top_ids == [50]
    sampler.release(4)
    assert 4 not in recording.accepted
    with pytest.raises(RequestError, match="halve"):
        sampler.validate(start(0, extra={"halve": "badly"}))


@pytest.mark.parametrize("where", ["admit", "apply", "shape", "accept"])
def test_a_broken_processor_costs_only_its_rows(
    start: Start, sampler_of: Build, sample: Sample, where: str
) -> None:
    sampler = sampler_of(V, start(0), start(1, extra={"halve": True}), processors=[Broken(where), Halve()])
    found = sample(sampler, torch.zeros(2, V), [1, 0], [3, 3])
    assert list(found.failed) == [0]
    assert "Broken failed" in found.failed[0]
    sampler.release(1)
    sampler.admit(start(1))
    assert sample(sampler, torch.zeros(2, V), [1, 0], [4, 4]).failed == {}
