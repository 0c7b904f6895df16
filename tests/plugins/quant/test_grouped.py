"""Grouped integer weights: packing, the CPU product, and the kernels under Triton's interpreter and compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo_quant.grouped import dequantise, grouped_linear, pack_grouped, unpack_grouped
from octavo_quant.grouped.packing import CONTAINERS, pack_codes, unpack_codes
from octavo_quant.grouped.weights import pack_for_kernels

HERE = Path(__file__).parent


@pytest.mark.parametrize("bits", sorted(CONTAINERS))
def test_codes_survive_packing(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 208), dtype=torch.uint8)
    field = CONTAINERS[bits]
    words = pack_codes(codes, field)
    assert words.shape[1:] == (5, 16)
    assert torch.equal(unpack_codes(words, field, 208), codes)


@pytest.mark.parametrize("zero", ["none", "whole", "real"])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 32), (4, 64), (4, -1), (8, 20)])
def test_cpu_product(bits: int, group: int, zero: str) -> None:
    torch.manual_seed(0)
    rows, width = 24, 320
    size = width if group == -1 else group
    codes = torch.randint(0, 2**bits, (rows, width), dtype=torch.uint8)
    scales = torch.rand(rows, width // size)
    zeros = {
        "none": None,
        "whole": torch.randint(0, 2**bits, (rows, width // size)),
        "real": torch.rand(rows, width // size) * 5,
    }[zero]
    permutation = torch.randperm(width)
    made = pack_grouped(
        codes, scales, zeros, bits=bits, group_size=group, permutation=permutation, dtype=torch.float32
    )
    index = torch.arange(width) // size
    middle = torch.full(scales.shape, float(2 ** (bits - 1)))
    offset = (middle if zeros is None else zeros).double()[:, index]
    weight = torch.zeros(rows, width, dtype=torch.float64)
    weight[:, permutation] = (codes.double() - offset) * scales.double()[:, index]
    x, bias = torch.randn(7, width), torch.randn(rows)
    expected = x.double() @ weight.T + bias
    torch.testing.assert_close(grouped_linear(x, made, bias).double(), expected, rtol=1e-4, atol=1e-4)
    assert (unpack_grouped(made).double() - weight).abs().max() < 1e-4
    assert grouped_linear(x[:0], made, None).shape == (0, rows)


def test_packed_form_keeps_every_bit() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (8, 256), dtype=torch.uint8)
    scales, zeros = torch.rand(8, 2).half(), torch.randint(0, 16, (8, 2))
    for stored in (scales, scales.bfloat16(), (scales * 1e-9).bfloat16()):
        made = pack_for_kernels(
            codes, stored, zeros, bits=4, group_size=128, permutation=None, dtype=torch.bfloat16
        )
        assert torch.equal(unpack_grouped(made), dequantise(codes, stored, zeros, 4, 128))


def test_sizes_that_do_not_fit_are_refused() -> None:
    codes = torch.zeros(4, 96, dtype=torch.uint8)
    with pytest.raises(ValueError, match="group size of 64 does not divide 96"):
        pack_grouped(codes, torch.ones(4, 2), None, bits=4, group_size=64, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"scales are \[4, 2\], but must be \[4, 3\]"):
        pack_grouped(codes, torch.ones(4, 2), None, bits=4, group_size=32, dtype=torch.float32)
    with pytest.raises(ValueError, match="codes of 7 bits"):
        pack_grouped(codes, torch.ones(4, 3), None, bits=7, group_size=32, dtype=torch.float32)


@pytest.mark.parametrize("tokens", [1, 8, 16, 32, 64])
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 28672), (57344, 8192)],
)
def test_stored_tiles_fill_a_hopper_gpu(tokens: int, outputs: int, inputs: int) -> None:
    pytest.importorskip("triton")
    from octavo_quant.grouped.launch import splits_for, stored_tiles

    tile = stored_tiles().pick(tokens, outputs, inputs)
    assert tile is not None
    assert tile.block_m == max(8, tokens)  # each weight is read once
    splits, span = splits_for(tile, tokens, outputs, inputs // 128)
    assert (splits - 1) * span < inputs // 128 <= splits * span
    assert 0.8 * 132 <= splits * -(-outputs // tile.block_n) <= max(3 * 132, outputs // tile.block_n)
    assert stored_tiles().pick(2048, outputs, inputs) is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_under_the_interpreter(dtype: str) -> None:
    pytest.importorskip("triton")
    # In a process of its own: the interpreter is chosen when kernels are defined.
    done = subprocess.run(
        [sys.executable, str(HERE / "grouped_cases.py"), "cpu", dtype],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_compile_for_hopper_without_spills() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(HERE / "compile_grouped.py"), "--quick"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(made) >= 3
    assert all(one["spills"] == 0 for one in made), done.stdout
