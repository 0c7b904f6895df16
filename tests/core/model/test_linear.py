"""What a quantisation scheme is given of the tensors it described."""

from __future__ import annotations

import pytest
import torch

from octavo.contracts.linear import ParamSpec
from octavo.model.linear import Linear, Part
from octavo.model.parts import Parts


class Scaled:
    """A weight and, where the checkpoint has it, a scale for each part."""

    def method_for(self, spec):
        return self

    def params(self, spec):
        weight = ParamSpec(shape=(spec.out_features, spec.in_features), dtype=spec.dtype, out_axis=0, in_axis=1)
        return {"weight": weight, "scale": ParamSpec(shape=(), dtype=spec.dtype, per_part=True, optional=True)}

    def finalize(self, spec, raw):
        return raw

    def apply(self, weights, x, bias):
        return x @ weights["weight"].T


@pytest.mark.parametrize("has_scale", [True, False])
def test_optional_tensors_reach_the_scheme_where_they_were_loaded(has_scale: bool) -> None:
    parts = Parts(dtype=torch.float32, device=torch.device("cpu"), attention=None, scheme=Scaled())
    linear = Linear(parts, [Part("a", 4), Part("b", 2)], 3, bias=False)
    for slot in linear.slots():
        slot.loaded = has_scale or not slot.source.endswith("scale")
    assert {slot.source: slot.shape for slot in linear.slots()} == {
        "a.weight": (4, 3),
        "a.scale": (),
        "b.weight": (2, 3),
        "b.scale": (),
    }
    linear.finalize()
    assert set(linear.weights) == ({"weight", "scale"} if has_scale else {"weight"})
