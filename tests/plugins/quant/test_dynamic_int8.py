"""Dynamic INT8 linears against float64 of the dequantised weights."""

from __future__ import annotations

import pytest
import torch

from octavo.contracts.linear import LinearSpec
from octavo_quant.dynamic_int8 import DynamicInt8, DynamicInt8Scheme


def spec(out: int, inner: int, name: str = "mlp.down_proj") -> LinearSpec:
    return LinearSpec(
        name=name,
        in_features=inner,
        out_parts=(out,),
        bias=False,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("out", "inner"), [(8, 16), (33, 72), (960, 576)])
def test_error_is_that_of_the_activations(out: int, inner: int) -> None:
    torch.manual_seed(0)
    weight, x, bias = torch.randn(out, inner), torch.randn(6, inner), torch.randn(out)
    x[2] *= 1000
    method = DynamicInt8()
    packed = method.finalize(spec(out, inner), {"weight": weight.clone()})
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    dequantised = (weight.double() / scale).round().clamp(-128, 127) * scale
    expected = x.double() @ dequantised.T + bias.double()
    answer = method.apply(packed, x, bias).double()
    error = (answer - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 0.03  # 7-bit activations: a step of 1/64 of each row's largest


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(1)
    method = DynamicInt8()
    packed = method.finalize(spec(64, 32), {"weight": torch.randn(64, 32)})
    x = torch.randn(5, 32)
    x[0] *= 1e4
    together = method.apply(packed, x, None)
    for row in range(5):
        assert torch.equal(method.apply(packed, x[row : row + 1], None)[0], together[row])


def test_zero_rows_and_no_rows() -> None:
    method = DynamicInt8()
    packed = method.finalize(spec(8, 16), {"weight": torch.randn(8, 16)})
    assert torch.equal(method.apply(packed, torch.zeros(2, 16), None), torch.zeros(2, 8))
    assert method.apply(packed, torch.zeros(0, 16), None).shape == (0, 8)


def test_skipped_layers_stay_unquantised() -> None:
    scheme = DynamicInt8Scheme([r"lm_head", r"layers\.0\."])
    assert scheme.method_for(spec(8, 16, "lm_head")) is None
    assert scheme.method_for(spec(8, 16, "model.layers.0.mlp.up_proj")) is None
    assert scheme.method_for(spec(8, 16, "model.layers.10.mlp.up_proj")) is not None
