"""Cases for the fused operations, run under Triton's interpreter on a CPU and natively on a GPU.

python cases.py DEVICE DTYPE        # prints one line a case; exits 1 where one fails
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from octavo.model.rope import Rope
from octavo.ops import noise, reference


def check(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    print(f"{name}: {error:.2e}")
    return error <= tolerance


def run(device: str, dtype: torch.dtype) -> bool:
    from octavo_ops.gate import silu_mul
    from octavo_ops.norm import add_rms_norm, rms_norm
    from octavo_ops.rotary import qk_norm_rope, rope

    torch.manual_seed(0)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    good = True
    for rows, width in ((1, 576), (3, 64), (5, 100), (2, 1024)):
        x, residual, weight = (
            torch.randn(shape, device=device).to(dtype) for shape in ((rows, width), (rows, width), (width,))
        )
        good &= check(
            f"rms_norm {rows}x{width}", rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), tolerance
        )
        mine, theirs = residual.clone(), residual.clone()
        found = add_rms_norm(x, mine, weight, 1e-5)
        good &= check("add_rms_norm", found, reference.add_rms_norm(x, theirs, weight, 1e-5), tolerance)
        good &= check("residual", mine, theirs, tolerance)
        gate_up = torch.randn(rows, 2 * width, device=device).to(dtype)
        good &= check("silu_mul", silu_mul(gate_up), reference.silu_mul(gate_up), tolerance)
    for heads, dim, rotary in ((12, 64, 64), (3, 80, 80), (9, 96, 48)):
        table = Rope({"rope_theta": 1e4}, rotary, 64, torch.device(device))
        cos, sin = table(torch.tensor([0, 3, 63], device=device))
        wide = torch.randn(3, heads + 2, dim, device=device).to(dtype)
        expected = reference.rope(wide[:, :heads].clone(), cos, sin)
        kept = wide[:, heads:].clone()
        good &= check(f"rope {heads}x{dim}/{rotary}", rope(wide[:, :heads], cos, sin), expected, tolerance)
        good &= torch.equal(wide[:, heads:], kept)
    for queries, heads, dim in ((4, 6, 64), (3, 4, 80)):
        cos, sin = Rope({"rope_theta": 1e4}, dim, 64, torch.device(device))(torch.tensor([1, 9], device=device))
        wide, *weights = (torch.randn(shape, device=device).to(dtype) for shape in ((2, heads + 1, dim), dim, dim))
        expected = reference.qk_norm_rope(wide[:, :heads].clone(), *weights, queries, 1e-6, cos, sin)
        found = qk_norm_rope(wide[:, :heads], *weights, queries, 1e-6, cos, sin)
        good &= check(f"qk_norm_rope {heads}x{dim}", found, expected, tolerance)
    return good and check_draw(device) and check_linear(device, dtype) and check_masks(device)


def check_draw(device: str) -> bool:
    """The same tokens as the reference, with masked tokens and a vocabulary that is no multiple of anything."""
    from octavo_ops.draw import draw

    rows, vocab = 24, 9001
    scaled = torch.randn(rows, vocab, device=device) * 3
    scaled[:, ::3] = float("-inf")
    seeds, positions = np.arange(rows, dtype=np.uint64) * 7919, np.arange(rows, dtype=np.int64)
    words = torch.from_numpy(noise.token_words(vocab)).to(device)
    keys = torch.from_numpy(noise.row_keys(seeds, positions)).to(device)
    good = True
    for temperature in (None, torch.rand(rows, 1, device=device) + 0.3):
        found, scores = draw(scaled, temperature, words, keys)
        expected, _ = noise.draw(scaled, temperature, words, keys)
        print("draw:", int((found == expected).sum()), "of", rows)
        good &= torch.equal(found, expected) and bool(scores.isfinite().all())
    for row, spoilt in enumerate((float("nan"), float("inf"), float("-inf"))):
        scaled[row, 5000 if row < 2 else slice(None)] = spoilt
    tokens, scores = draw(scaled, None, words, keys)
    good &= scores.isfinite().tolist() == [False] * 3 + [True] * (rows - 3)
    good &= bool(((tokens >= 0) & (tokens < vocab)).all())
    return good


def check_linear(device: str, dtype: torch.dtype) -> bool:
    """One token, a few (columns whole and split), a size that fits no kernel, many; twice: counters reset."""
    from octavo_ops.linear import Linear

    linear, good = Linear(processors=8, early=torch.cuda.is_available()), True
    for rows, outputs, width in (
        (1, 7, 1024),
        (1, 6, 10240),
        (1, 6, 576),
        (3, 72, 512),
        (17, 200, 512),
        (40, 64, 128),
        (80, 9, 64),
    ):
        x, weight, bias = (
            torch.randn(*shape, device=device).to(dtype) for shape in ((rows, width), (outputs, width), (outputs,))
        )
        expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        name = f"linear {rows}x{width} to {outputs}"
        for _ in range(2):
            good &= check(name, linear(x, weight, bias), expected, 4e-3)
        wide = linear(x, weight, None, torch.float32)
        good &= wide.dtype == torch.float32 and check(f"{name}, float32", wide, expected - bias.double(), 4e-3)
    return good


def check_masks(device: str) -> bool:
    """Some rows out of order, vocabularies that are no multiple of anything, and bits beyond the vocabulary."""
    from octavo_ops.masks import mask_logits

    good = True
    for vocab in (31, 64, 4097):
        logits = torch.randn(5, vocab, device=device)
        flags = np.random.default_rng(vocab).integers(0, 2, (3, -(-vocab // 32) * 32), np.uint8)
        bits = torch.from_numpy(np.packbits(flags, axis=1, bitorder="little").view(np.int32)).to(device)
        index = torch.tensor([4, 0, 2], device=device)
        expected = logits.clone()
        for row, place in enumerate((4, 0, 2)):
            expected[place, torch.from_numpy(flags[row, :vocab] == 0).to(device)] = -torch.inf
        for function in (mask_logits, reference.mask_logits):
            found = logits.clone()
            function(found, index, bits)
            good &= torch.equal(found, expected)
        good &= torch.equal(reference.barred_tokens(bits, vocab).cpu(), torch.from_numpy(flags[:, :vocab] == 0))
        print(f"mask_logits {vocab}:", good)
    return good


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1], getattr(torch, sys.argv[2])) else 1)
