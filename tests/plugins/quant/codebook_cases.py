"""The codebook kernels against their float64 meaning, under Triton's interpreter on a CPU and natively on a GPU.

python codebook_cases.py DEVICE DTYPE        # prints one line a case; exits 1 where one fails
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
CASES = runpy.run_path(str(HERE / "fp8_cases.py"))
WRITE = runpy.run_path(str(HERE / "small_writers.py"))
MODELS = ("nvfp4", "nf4, nested")


def scales_of(kind: str, rows: int, groups: int, device: str) -> Tensor:
    drawn = torch.rand(rows, groups, device=device) + 0.01
    if kind == "e4m3":
        return (drawn * torch.logspace(-2.9, 2, groups, device=device)).to(torch.float8_e4m3fn)
    return torch.randint(110, 131, (rows, groups), device=device, dtype=torch.uint8) if kind == "power" else drawn


def check(device: str, dtype: torch.dtype, shapes: tuple[tuple[int, int, int], ...]) -> bool:
    from octavo_quant.codebook import launch
    from octavo_quant.codebook.weights import E2M1, Codes, wide_scales

    good = True
    for kind, group in (("float", 64), ("e4m3", 16), ("power", 32), ("float", 128)):
        for tokens, rows, size in shapes:
            codes = torch.randint(0, 16, (rows, size), device=device, dtype=torch.uint8)
            table = torch.tensor(E2M1 if kind != "float" else WRITE["NF4"].tolist(), device=device)
            by_row = torch.rand(rows, device=device) if kind == "e4m3" else None
            weights = Codes(codes, table, scales_of(kind, rows, size // group, device), group, by_row)
            exact = table.double()[codes.long()] * wide_scales(weights.scales).double().repeat_interleave(group, 1)
            exact = exact if by_row is None else exact * by_row.double().unsqueeze(1)
            good &= CASES["close"](f"{kind} {group}: reference", weights.dequantise(), exact, 1e-6)
            tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]
            packed = weights.packed()
            good &= CASES["close"]("decoded", launch.decode(packed, dtype), exact, tolerance)
            x = torch.randn(tokens, size, device=device).to(dtype)
            bias = torch.randn(rows, device=device).to(dtype) if rows % 3 else None
            expected = x.double() @ exact.T + (0 if bias is None else bias.double())
            good &= CASES["close"](f"product {tokens}", launch.product(x, packed, bias), expected, tolerance)
    return good


def check_models() -> bool:
    good = True
    for name in MODELS:
        writer = WRITE["WRITERS"][name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            truth = CASES["KIT"]["make"](path, writer.quantise, writer.config, layers=1)
            wanted = CASES["KIT"]["expected"](path, truth, [1, 5, 99])
            with CASES["native_schemes"]():
                good &= CASES["close"](name, CASES["KIT"]["logits"](path, [1, 5, 99]), wanted, 1e-5)
    return good


def run(device: str, dtype: torch.dtype) -> bool:
    torch.manual_seed(0)
    shapes: tuple[tuple[int, int, int], ...] = ((1, 80, 256), (19, 48, 1152))
    if device != "cpu":
        shapes += ((1, 4096, 4096), (32, 6144, 4096), (8, 4096, 14336))
    return check(device, dtype, shapes) and (device != "cpu" or check_models())


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1], getattr(torch, sys.argv[2])) else 1)
