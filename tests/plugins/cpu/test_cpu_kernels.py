"""The native operations and linear layers against float64, and against themselves in other batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec
from octavo.ops import reference
from octavo_cpu.linear import NativeLinear
from octavo_cpu.ops import NativeOps

pytestmark = pytest.mark.usefixtures("built")


def spec(out: int, inner: int) -> LinearSpec:
    return LinearSpec(
        name="x", in_features=inner, out_parts=(out,), bias=False, dtype=torch.float32, device=torch.device("cpu")
    )


@pytest.mark.parametrize(("out", "inner"), [(1, 1), (33, 72), (960, 576), (16, 2000), (100, 401)])
def test_linear(out: int, inner: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(out, inner), torch.randn(out), torch.randn(130, inner)
    method = NativeLinear(2)
    packed = method.finalize(spec(out, inner), {"weight": weight})
    answer = method.apply(packed, x, bias)
    expected = x.double() @ weight.double().T + bias.double()
    assert (answer - expected).abs().max() < 1e-5 * inner**0.5
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 13, 64):
        assert torch.equal(method.apply(packed, x[:rows], bias), answer[:rows])
        assert torch.equal(NativeLinear(1).apply(packed, x[3 : 3 + rows], bias), answer[3 : 3 + rows])
    odd = torch.randn(7, 2 * inner)[:, ::2]  # not contiguous
    assert torch.equal(method.apply(packed, odd, None), method.apply(packed, odd.contiguous(), None))


@pytest.mark.parametrize("size", [8, 13, 576])
def test_norms(size: int) -> None:
    torch.manual_seed(0)
    ops = NativeOps(2)
    x, residual, weight = torch.randn(70, size), torch.randn(70, size), torch.randn(size)
    wide = reference.rms_norm(x.double(), weight.double(), 1e-5)
    assert (ops.rms_norm(x, weight, 1e-5) - wide).abs().max() < 1e-5
    total = residual + x
    answer = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert torch.equal(answer, ops.rms_norm(total, weight, 1e-5))


def test_gate() -> None:
    x = torch.cat((torch.linspace(-120, 120, 999), torch.tensor([0.0, -0.0, 1e-30, torch.inf, torch.nan])))
    gate_up = torch.cat((x, torch.ones_like(x))).unsqueeze(0)
    answer = NativeOps(1).silu_mul(gate_up)
    expected = torch.nn.functional.silu(x.double())
    assert (answer[0, :-2] - expected[:-2]).abs().max() < 2e-6
    assert answer[0, -2] == torch.inf
    assert answer[0, -1].isnan()


@pytest.mark.parametrize(("size", "width"), [(64, 64), (24, 24), (64, 32), (80, 40)])
def test_rope(size: int, width: int) -> None:
    torch.manual_seed(0)
    everything, angles = torch.randn(9, 7, size), torch.randn(9, 1, width // 2)
    cos, sin = (torch.cat((a, b), dim=2) for a, b in ((angles.cos(), angles.cos()), (-angles.sin(), angles.sin())))
    heads, ops = everything[:, :5], NativeOps(2)
    assert (ops.rope(heads, cos, sin) - reference.rope(heads, cos, sin)).abs().max() < 1e-6
    weights = torch.randn(size), torch.randn(size)
    answer = ops.qk_norm_rope(heads, *weights, 3, 1e-6, cos, sin)
    assert (answer - reference.qk_norm_rope(heads, *weights, 3, 1e-6, cos, sin)).abs().max() < 1e-5


def quantised(bits: int, out: int, inner: int, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = torch.randint(0, 2**bits, (out, inner), dtype=torch.uint8)
    scales, zeros = torch.rand(out, inner // group) + 0.1, torch.rand(out, inner // group) * 2**bits
    weight = (codes.view(out, -1, group).double() - zeros.unsqueeze(2)) * scales.unsqueeze(2)
    return codes, scales, zeros, weight.view(out, inner)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "inner", "group"), [(33, 72, 36), (96, 576, 32), (7, 10, 10), (40, 1536, 1536)])
def test_grouped_weights(bits: int, out: int, inner: int, group: int) -> None:
    from octavo_quant.native_cpu import native_linear, pack_native, unpack_native

    torch.manual_seed(0)
    codes, scales, zeros, weight = quantised(bits, out, inner, group)
    order = torch.randperm(inner)
    packed = pack_native(codes, scales, zeros, bits=bits, group_size=group, permutation=order)
    weight = torch.empty_like(weight).index_copy_(1, order, weight)
    assert (unpack_native(packed) - weight).abs().max() < 1e-6 * 2**bits
    x, bias = torch.randn(70, inner), torch.randn(out)
    x[2] *= 1000
    answer, expected = native_linear(x, packed, bias), x.double() @ weight.T + bias
    assert ((answer - expected).norm(dim=1) / expected.norm(dim=1)).max() < 5e-4  # of 16-bit activations
    for rows in (0, 1, 5, 6, 7, 64):
        assert torch.equal(native_linear(x[:rows], packed, bias), answer[:rows])


def test_what_is_not_finite_stays_so() -> None:
    from octavo_quant.native_cpu import native_linear, pack_native

    packed = pack_native(torch.full((8, 16), 129, dtype=torch.uint8), torch.ones(8, 1), None, bits=8, group_size=16)
    x = torch.ones(4, 16)
    x[1, 3], x[2, 0] = torch.nan, -torch.inf
    answer = native_linear(x, packed, None)
    assert answer[[1, 2]].isnan().all()
    assert torch.allclose(answer[[0, 3]], torch.full((2, 8), 16.0))
    assert torch.equal(native_linear(torch.zeros(1, 16), packed, None), torch.zeros(1, 8))


def test_int4_finds_what_was_16_steps_before() -> None:
    from octavo_quant.integer.online import spread
    from octavo_quant.native_cpu import pack_native, unpack_native

    torch.manual_seed(0)
    codes = torch.randint(0, 16, (20, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    weight = ((codes.view(20, 2, 32) * 0.01) - torch.rand(20, 2, 1)).reshape(20, 64)
    found, scales, zeros = spread(weight, 32)
    assert torch.equal(found.long(), codes)
    packed = pack_native(found, scales, zeros, bits=4, group_size=32)
    assert (unpack_native(packed) - weight).abs().max() < 1e-6
    same = torch.full((4, 32), 0.3)
    assert (unpack_native(pack_native(*spread(same, 32), bits=4, group_size=32)) - same).abs().max() < 1e-6
