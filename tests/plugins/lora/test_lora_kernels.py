"""The Triton backend against the torch reference, under Triton's interpreter and on a GPU; compiled for Hopper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from octavo_lora.tiles import device_tiles, host_tiles


def run(script: str, *arguments: str, **environment: str) -> str:
    # In a process of its own: the interpreter is chosen when kernels are defined.
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_interpreted_kernels_equal_the_reference(dtype: str) -> None:
    run("lora_cases.py", "cpu", dtype, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernels_equal_the_reference_on_a_gpu(dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run("lora_cases.py", "cuda", dtype)


@pytest.mark.slow
def test_kernels_for_hopper_keep_to_registers_and_load_wide() -> None:
    found = [json.loads(line) for line in run("compile_lora.py", "--quick").splitlines()]
    assert [(one["kernel"], one["block"]) for one in found] == [
        (kernel, block) for block in (16, 64) for kernel in ("shrink_kernel", "expand_kernel")
    ]
    for one in found:
        assert (one["spills"], one["stack"], one["narrow"]) == (0, 0, 0), one
        assert one["registers"] <= 136, one
        assert min(one["tensor_cores"], one["wide"]) > 0, one
        assert one["async_copies"] or one["kernel"] == "expand_kernel", one


@pytest.mark.parametrize("seed", range(30))
def test_tiles_hold_every_adapted_token_once(seed: int) -> None:
    """Made on the host and on the device: tokens of one slot each, none left out, none twice."""
    random = np.random.default_rng(seed)
    most = int(random.choice([1, 3, 40]))
    slots = random.integers(0, most + 1, int(random.choice([1, 7, 256, 700, 3000])))
    slots[: len(slots) // 2] = random.integers(0, most + 1)
    made = [host_tiles(slots, torch.device("cpu")), device_tiles(torch.from_numpy(slots), most)]
    if not slots.any():
        assert made[0] is None
    for tiles in made:
        if tiles is None:
            continue
        order, found = tiles.order.numpy(), []
        assert len(tiles.tiles) == tiles.count
        for slot, first, last in tiles.tiles.tolist():
            if slot:
                assert 0 < last - first <= tiles.block
                assert (slots[order[first:last]] == slot).all()
                found += order[first:last].tolist()
        assert sorted(found) == np.flatnonzero(slots).tolist()
