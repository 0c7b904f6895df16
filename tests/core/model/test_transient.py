"""Tensors that exist only until their layer is finalised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.contracts.linear import ParamSpec
from octavo.contracts.model import filled
from octavo.model.linear import Linear, Part
from octavo.model.parts import Parts
from octavo.testing.tiny import tiny_llama


class Rounded:
    """Keeps a quarter of what it reads, and remembers how many layers were whole at a time."""

    def __init__(self) -> None:
        self.finalized = 0

    def method_for(self, spec: Any) -> Rounded | None:
        return None if spec.name == "lm_head" else self

    def params(self, spec: Any) -> dict[str, ParamSpec]:
        shape = (spec.out_features, spec.in_features)
        return {
            "weight": ParamSpec(shape=shape, dtype=spec.dtype, out_axis=0, in_axis=1, transient=True, kept=0.25)
        }

    def finalize(self, spec: Any, raw: dict[str, torch.Tensor]) -> torch.Tensor:
        self.finalized += 1
        return raw["weight"].to(torch.int8)

    def apply(self, weights: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return x @ weights.to(x.dtype).T


def test_memory_comes_with_the_first_part_and_goes_with_the_last() -> None:
    scheme = Rounded()
    parts = Parts(dtype=torch.float32, device=torch.device("cpu"), attention=None, scheme=scheme)  # type: ignore
    linear = Linear(parts, [Part("a", 4), Part("b", 2)], 3, bias=False)
    first, second = linear.slots()
    assert first.target.device.type == second.target.device.type == "meta"
    assert [slot.kept for slot in linear.slots()] == [0.25, 0.25]
    with filled(first):
        assert first.target.shape == (4, 3)
        first.target.fill_(3.0)
    assert scheme.finalized == 0
    with filled(second):
        second.target.fill_(-5.0)
    assert scheme.finalized == 1
    assert linear.weights.dtype == torch.int8
    assert first.target.device.type == second.target.device.type == "meta"  # what was read is let go
    linear.finalize()
    assert scheme.finalized == 1
    assert linear(torch.ones(1, 3)).tolist() == [[9.0, 9.0, 9.0, 9.0, -15.0, -15.0]]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_is_never_whole_in_its_first_form(shards: int, tmp_path: Path, load_model: Any) -> None:
    """In the order of the files, a layer is finalised before much of the next is there."""
    scheme, open_layers, most = Rounded(), set(), 0
    place = Linear._make_room

    def counted(self: Linear) -> None:
        nonlocal most
        place(self)
        open_layers.add(self)
        most = max(most, sum(each.weights is None for each in open_layers))

    Linear._make_room = counted  # type: ignore[method-assign]
    try:
        load_model(tiny_llama(tmp_path, layers=4, shards=shards, tied=False), scheme=scheme)
    finally:
        Linear._make_room = place  # type: ignore[method-assign]
    assert scheme.finalized == len(open_layers) == 16
    assert most <= 4
