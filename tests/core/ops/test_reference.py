"""The reference operations against their formulas in float64."""

from __future__ import annotations

import torch

from octavo.model.rope import Rope
from octavo.ops import reference


def test_rms_norm_and_residual() -> None:
    x, residual, weight = torch.randn(5, 48), torch.randn(5, 48), torch.randn(48)
    total = x.double() + residual.double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    kept = residual.clone()
    torch.testing.assert_close(
        reference.add_rms_norm(x, kept, weight, 1e-5).double(), expected, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(kept.double(), total, atol=1e-6, rtol=1e-6)


def test_rms_norm_of_half_precision_is_computed_in_float32() -> None:
    x, weight = torch.full((2, 64), 300.0, dtype=torch.float16), torch.ones(64, dtype=torch.float16)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-6), torch.ones_like(x))


def test_silu_mul() -> None:
    gate_up = torch.randn(3, 20)
    gate, up = gate_up.double().chunk(2, -1)
    expected = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(reference.silu_mul(gate_up).double(), expected, atol=1e-6, rtol=1e-6)


def test_rope_turns_pairs_and_leaves_the_rest() -> None:
    heads = torch.randn(4, 3, 10)
    positions = torch.tensor([0, 1, 7, 30])
    cos, sin = Rope({"rope_theta": 100.0}, 6, 64, torch.device("cpu"))(positions)
    out = reference.rope(heads.clone(), cos, sin).double()
    for token, position in enumerate(positions.tolist()):
        for pair in range(3):
            angle = torch.tensor(position * 100.0 ** (-2 * pair / 6), dtype=torch.float64)
            a, b = heads[token, :, pair].double(), heads[token, :, pair + 3].double()
            torch.testing.assert_close(out[token, :, pair], a * angle.cos() - b * angle.sin(), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                out[token, :, pair + 3], b * angle.cos() + a * angle.sin(), atol=1e-5, rtol=1e-5
            )
    torch.testing.assert_close(out[..., 6:], heads[..., 6:].double())
