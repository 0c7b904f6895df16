"""The FP8 kernels against float64, under Triton's interpreter on a CPU and natively on a GPU.

python fp8_cases.py DEVICE DTYPE        # prints one line a case; exits 1 where one fails
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

KIT = runpy.run_path(str(Path(__file__).with_name("checkpoints.py")))
WRITE = runpy.run_path(str(Path(__file__).with_name("eight_bit_writers.py")))
MODELS = ("fp8 tensor, static", "fp8 blocks", "ct fp8 channel, token", "ct fp8 weights only", "ct w8a8, static")
E4M3 = torch.float8_e4m3fn


def close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> bool:
    error = float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    print(f"{name}: {error:.2e}{'' if error <= tolerance else '  WRONG'}")
    return error <= tolerance


def check_quantise(device: str, dtype: torch.dtype) -> bool:
    from octavo_quant.fp8 import launch, reference

    good = True
    step = 0.1 if device == "cpu" else 5e-3  # the interpreter cuts where the hardware rounds
    for tokens, size in ((1, 64), (3, 576), (2, 20000), (0, 64)):
        x = torch.randn(tokens, size + 16, device=device).to(dtype)[:, :size] * 3
        x[:, 1] *= 40
        fixed = torch.tensor([0.02], device=device)
        for name, how in (("a token", {}), ("fixed", {"fixed": fixed}), ("bounded", {"upper": 50.0})):
            codes, scales = launch.quantise_rows(x, **how)
            expected, wanted = reference.quantise_rows(x, **how)
            good &= close(f"{name} {tokens}x{size}: scales", scales, wanted, 1e-6)
            good &= scales.shape == wanted.shape
            good &= close("codes", codes.float() * scales, expected.double() * wanted, step)
        codes, scales = launch.quantise_groups(x, 128)
        expected, wanted = reference.quantise_groups(x, 128)
        good &= close("groups: scales", scales, wanted, 1e-6)
        good &= close("codes", codes.float(), expected.float(), step)
    return good


def operands(tokens: int, outputs: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = (torch.randn(outputs, size, device=device) * 64).clamp(-448, 448).to(E4M3)
    scales = torch.rand(outputs, device=device) * 0.01 + 0.001
    x = (torch.randn(tokens, size, device=device) * 64).clamp(-448, 448).to(E4M3)
    return codes, scales, x, torch.rand(tokens, 1, device=device) * 0.1 + 0.01


def check_products(device: str, dtype: torch.dtype, shapes: tuple[tuple[int, int, int], ...]) -> bool:
    from octavo_quant.fp8 import launch

    good = True
    # Hopper's tensor cores add products of FP8 with 14 bits.
    tolerance = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}[dtype] + 5e-4 * (device != "cpu")
    for tokens, outputs, size in shapes:
        codes, scales, x, x_scales = operands(tokens, outputs, size, device)
        bias = torch.randn(outputs, device=device).to(dtype) if size % 3 else None
        plus = 0 if bias is None else bias.double()
        weight = codes.double() * scales.double().unsqueeze(1)
        found = launch.matmul(x, x_scales, codes, scales, bias, dtype)
        expected = (x.double() * x_scales.double()) @ weight.T + plus
        good &= close(f"rows {tokens}x{outputs}x{size}", found, expected, tolerance)
        wide = (x.float() * 0.01).to(dtype)
        found = launch.matmul(wide, None, codes, scales, bias, dtype)
        good &= close("16-bit activations", found, wide.double() @ weight.T + plus, tolerance)
        groups = -(-size // 128)
        block = torch.rand(outputs, groups, device=device) * 0.01 + 0.001
        by_token = torch.rand(tokens, groups, device=device) * 0.1 + 0.01
        spread = codes.double() * block.double().repeat_interleave(128, 1)[:, :size]
        found = launch.matmul(x, by_token, codes, block, bias, dtype)
        expected = (x.double() * by_token.double().repeat_interleave(128, 1)[:, :size]) @ spread.T + plus
        good &= close("blocks", found, expected, tolerance)
        found = launch.matmul(wide, None, codes, block, bias, dtype)
        good &= close("blocks, 16-bit activations", found, wide.double() @ spread.T + plus, tolerance)
    return good


def check_int8(device: str, dtype: torch.dtype, shapes: tuple[tuple[int, int, int], ...]) -> bool:
    from octavo_quant.fp8 import launch as product
    from octavo_quant.w8a8 import launch, reference

    good = True
    for tokens, outputs, size in shapes:
        x = (torch.randn(tokens, size, device=device) + 0.5).to(dtype)
        weight = torch.randint(-127, 128, (outputs, size), device=device, dtype=torch.int8)
        scales = torch.rand(outputs, device=device) * 0.01 + 0.001
        fixed = torch.tensor([0.03], device=device), torch.tensor([-9.0], device=device)
        for how in ((None, True), (None, False), (fixed, False)):
            found = launch.quantise(x, *how)
            expected = reference.quantise_fixed(x, *how[0]) if how[0] else reference.quantise_rows(x, how[1])
            good &= close(f"int8 {tokens}x{size}: scales", found[1], expected[1], 1e-6)
            difference = (found[0].int() - expected[0].int()).abs()
            good &= int(difference.max()) <= 1 if tokens else True
            good &= float(difference.float().mean()) < 0.01 if tokens else True
            codes, by_token, zeros = found
            sums = weight.sum(1, dtype=torch.int32).float()
            bias = torch.randn(outputs, device=device).to(dtype)
            answer = product.matmul(codes, by_token, weight, scales, bias, dtype, x_zeros=zeros, sums=sums)
            real = (codes.double() - zeros.double().unsqueeze(1)) * by_token.double().unsqueeze(1)
            wanted = real @ (weight.double() * scales.double().unsqueeze(1)).T + bias.double()
            good &= close("product", answer, wanted, {torch.float32: 1e-6, torch.float16: 6e-4}.get(dtype, 5e-3))
    return good


def check_models(device: str) -> bool:
    """Layers as the schemes make them for a GPU, merged ones too, in whole models."""
    good = True
    for name, writer in WRITE["WRITERS"].items():
        if name not in MODELS:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            truth = KIT["make"](path, writer.quantise, writer.config, layers=1)
            ids = [1, 5, 99, 200, 7]
            wanted = KIT["expected"](path, truth, ids)
            with native_schemes():
                good &= close(name, KIT["logits"](path, ids), wanted, writer.activation_error)
    return good


@contextmanager
def native_schemes() -> Iterator[None]:
    """On a CPU the interpreter stands in for the GPU that the schemes look for, but for its way of rounding."""
    from octavo_quant.fp8 import launch, reference, scheme

    asked = scheme.runs_fp8, scheme.runs_kernels, launch.quantise_rows, launch.quantise_groups
    scheme.runs_fp8 = scheme.runs_kernels = lambda ctx: True
    launch.quantise_rows, launch.quantise_groups = reference.quantise_rows, reference.quantise_groups
    try:
        yield
    finally:
        scheme.runs_fp8, scheme.runs_kernels, launch.quantise_rows, launch.quantise_groups = asked


def run(device: str, dtype: torch.dtype) -> bool:
    torch.manual_seed(0)
    shapes: tuple[tuple[int, int, int], ...] = (
        (1, 64, 128),
        (3, 144, 2064),
        (17, 48, 4224),
        (65, 144, 272),
        (0, 64, 128),
    )
    if device != "cpu":
        shapes += ((1, 4096, 4096), (40, 6144, 4096), (64, 4096, 14336), (300, 1040, 2064))
    good = check_quantise(device, dtype) & check_products(device, dtype, shapes) & check_int8(device, dtype, shapes)
    return good & check_models(device) if device == "cpu" and dtype == torch.float32 else good


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1], getattr(torch, sys.argv[2])) else 1)
