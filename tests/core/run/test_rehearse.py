"""What is compiled ahead: every kernel that steps will launch, once for each kind, and nothing is run."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.ahead import compiling, launch
from octavo.assemble import resolve
from octavo.config.compose import load_launch
from octavo.ops import build_ops
from octavo.run.build import build_parts
from octavo.run.rehearse import rehearse
from octavo.testing.tiny import tiny_llama


class Notes(Executor):
    """Notes what is to be compiled."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def submit(self, work: Any, /, *args: Any, **options: Any) -> Future[Any]:
        self.jobs.append((work, args, options))
        done: Future[Any] = Future()
        done.set_exception(RuntimeError("the compiler broke"))
        return done


class Kernel:
    """Stands in for a Triton kernel."""

    def __init__(self) -> None:
        self.launched: list[Any] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self.launched.append((grid, args, options))

    def warmup(self, *args: Any, **options: Any) -> None:
        raise AssertionError("the pool's business")


def test_meta_tensors_only_compile_and_each_kind_once() -> None:
    kernel, notes = Kernel(), Notes()
    real, meta = torch.zeros(4), torch.zeros(4, device="meta")
    with compiling(notes) as compilations:
        launch(kernel, (1,), real, 3, SIZE=4)
        for width, size in ((3, 4), (3, 4), (5, 4), (3, 8)):
            launch(kernel, (2,), meta, width, SIZE=size)
    assert kernel.launched == [((1,), (real, 3), {"SIZE": 4})]
    assert [(job[1][2][1], job[1][4]["SIZE"]) for job in notes.jobs] == [(3, 4), (5, 4), (3, 8)]
    compilations.wait()  # failures are left to the first launch
    launch(kernel, (1,), meta, 3, SIZE=4)  # nobody compiles ahead any more
    assert len(kernel.launched) == 1


def test_a_rehearsal_reaches_every_kernel(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from octavo_attention.backend import TritonAttention
    from octavo_ops.draw import draw
    from octavo_ops.gate import silu_mul
    from octavo_ops.linear import Linear
    from octavo_ops.norm import add_rms_norm, rms_norm
    from octavo_ops.rotary import rope

    folder = tiny_llama(tmp_path / "model", hidden=128, heads=4, kv_heads=2, dtype="float16")
    config, host = load_launch({"model": {"path": str(folder), "dtype": "float16"}, "api": []})
    resolved = resolve(config, host)
    device = torch.device("cpu")
    attention = TritonAttention(block_size=16, group=2, device=device, processors=4, hopper=False)
    ops = {
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "silu_mul": silu_mul,
        "rope": rope,
        "draw": draw,
        "linear": Linear(processors=4, early=False),
    }
    parts = replace(build_parts(resolved, device), attention=attention, ops=build_ops(ops))
    notes = Notes()
    assert rehearse(resolved, parts, notes) is not None
    names = {args[1].fn.__name__ for _, args, _ in notes.jobs}
    assert names == {
        "_norm_kernel",
        "_silu_mul_kernel",
        "_rope_kernel",
        "_race_kernel",
        "_skinny_kernel",
        "kv_write_kernel",
        "split_kernel",
        "decode_kernel",
        "prefill_kernel",
    }
