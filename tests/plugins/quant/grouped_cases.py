"""Cases for the kernels over grouped weights, run under Triton's interpreter on a CPU and natively on a GPU.

python grouped_cases.py DEVICE DTYPE        # prints one line a case; exits 1 where one fails
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One layer and batch."""

    bits: int
    group: int
    rows: int
    width: int
    tokens: int
    zero: str = "none"
    bias: bool = False
    permuted: bool = False
    swap: bool = False
    block_m: int = 16
    block_n: int = 16
    programs: int = 1
    scale: float = 0.02


CASES = [
    Case(4, 128, 24, 256, 1),
    Case(4, 128, 24, 256, 3, "whole", bias=True, swap=True),
    Case(4, 32, 16, 256, 2, "real", permuted=True),
    Case(4, 64, 40, 192, 5, "whole", permuted=True, bias=True),
    Case(4, -1, 16, 512, 2, programs=8),
    Case(4, 48, 17, 144, 2, "whole"),
    Case(4, 16, 16, 128, 17, "real", swap=True, programs=8),
    Case(8, 128, 24, 256, 2, "whole"),
    Case(8, 16, 16, 80, 2),
    Case(8, -1, 16, 96, 1, swap=True),
    Case(4, 128, 80, 256, 8, "whole", swap=True, block_m=8, block_n=64, programs=4),
    Case(2, 64, 16, 512, 2, "whole", programs=4),
    Case(3, 32, 16, 160, 3, "whole", bias=True),
    Case(4, 128, 16, 256, 2, scale=1e-7),
]


def make(
    case: Case, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, int]:
    generator = torch.Generator().manual_seed(case.bits * 1000 + case.group)
    group = case.width if case.group == -1 else case.group
    groups = case.width // group
    codes = torch.randint(0, 2**case.bits, (case.rows, case.width), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(case.rows, groups, generator=generator) + 0.5) * case.scale
    zeros = None
    if case.zero == "whole":
        zeros = torch.randint(0, 2**case.bits, (case.rows, groups), generator=generator)
    elif case.zero == "real":
        zeros = torch.rand(case.rows, groups, generator=generator) * 2**case.bits
    permutation = torch.randperm(case.width, generator=generator) if case.permuted else None
    scales = scales.to(torch.float16) if case.scale > 1e-4 else scales.to(torch.bfloat16)
    zeros = zeros.half() if zeros is not None and zeros.is_floating_point() else zeros
    moved = [t if t is None else t.to(device) for t in (codes, scales, zeros, permutation)]
    return (*moved, group)  # type: ignore[return-value]


def expected(case: Case, x, bias, codes, scales, zeros, permutation, group) -> torch.Tensor:
    """In float64, by the definition."""
    zero = torch.full_like(scales, 2 ** (case.bits - 1)) if zeros is None else zeros
    index = torch.arange(case.width, device=x.device) // group
    weight = (codes.double() - zero.double()[:, index]) * scales.double()[:, index]
    gathered = x.double() if permutation is None else x.double()[:, permutation]
    out = gathered @ weight.T
    return out if bias is None else out + bias.double()


def check(case: Case, device: str, dtype: torch.dtype) -> bool:
    from octavo_quant.grouped.launch import Tile, dequantise_rows, product
    from octavo_quant.grouped.weights import pack_for_kernels, unpack_grouped

    codes, scales, zeros, permutation, group = make(case, device)
    weights = pack_for_kernels(
        codes, scales, zeros, bits=case.bits, group_size=group, permutation=permutation, dtype=dtype
    )
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(case.tokens, case.width, generator=generator).to(device, dtype)
    bias = torch.randn(case.rows, generator=generator).to(device, dtype) if case.bias else None
    tile = Tile(
        block_m=case.block_m, block_n=case.block_n, programs=case.programs, warps=4, stages=2, swap=case.swap
    )
    wanted = expected(case, x, bias, codes, scales, zeros, permutation, group)
    found = product(x, weights, bias, tile)
    again = product(x, weights, bias, tile)
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    error = float((found.double() - wanted).norm() / wanted.norm())
    whole = torch.empty(case.rows, case.width, dtype=dtype, device=device)
    dequantise_rows(weights, 0, whole)
    part = torch.empty(case.rows - 8, case.width, dtype=dtype, device=device)
    dequantise_rows(weights, 8, part)
    plain = unpack_grouped(weights)
    plain = plain if permutation is None else plain[:, permutation]
    spread = float((whole.double() - plain.double()).norm() / plain.double().norm())
    good = error <= tolerance and spread <= tolerance and torch.equal(found, again) and torch.equal(whole[8:], part)
    print(f"{'ok  ' if good else 'FAIL'} {error:.1e} {spread:.1e} {case}")
    return good


def run(device: str, dtype: torch.dtype, step: int = 1) -> bool:
    """Every ``step``-th case."""
    small = dtype == torch.float16  # whose least number is larger than the tiny scales
    good = [check(case, device, dtype) for case in CASES[::step] if case.scale > 1e-4 or not small]
    return all(good) and check_table(device, dtype)


def check_table(device: str, dtype: torch.dtype) -> bool:
    """Weights out of tables, and a sparse matrix beside them."""
    from octavo_quant.grouped.launch import Tile, add_sparse, dequantise_rows, product
    from octavo_quant.grouped.weights import pack_table

    generator = torch.Generator().manual_seed(3)
    good = True
    for bits, tokens, swap in ((4, 1, False), (3, 18, True)):
        codes = torch.randint(0, 2**bits, (20, 160), generator=generator, dtype=torch.uint8)
        table = torch.randn(20, 2**bits, generator=generator).to(dtype)
        x = torch.randn(tokens, 160, generator=generator).to(device, dtype)
        made = pack_table(codes.to(device), table.to(device), bits=bits, dtype=dtype)
        few = torch.randn(20, 160, generator=generator) * (torch.rand(20, 160, generator=generator) < 0.05)
        few[3] = torch.randn(160, generator=generator)
        sparse = few.to_sparse_csr()
        tile = Tile(block_m=16, block_n=16, programs=8, warps=4, stages=2, swap=swap)
        out = product(x, made, None, tile)
        parts = (sparse.crow_indices().int(), sparse.col_indices().int(), sparse.values())
        add_sparse(x, *(part.to(device) for part in parts), out)
        weight = table.double().gather(1, codes.long())
        wanted = x.double().cpu() @ (weight + few.double()).T
        error = float((out.double().cpu() - wanted).norm() / wanted.norm())
        whole = torch.empty(20, 160, dtype=dtype, device=device)
        dequantise_rows(made, 0, whole)
        same = torch.equal(whole.double().cpu(), weight)
        fine = same and error < {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        print(f"{'ok  ' if fine else 'FAIL'} {error:.1e} table of {bits} bits")
        good &= fine
    return good


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1], getattr(torch, sys.argv[2])) else 1)
