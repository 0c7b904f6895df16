"""Times weight-only INT4 and INT8 products against bfloat16 on one GPU, in the shapes of an 8B model's layers.

    python benchmarks/gpu/quant_bench.py [--sweep] [--bits 4 8] [--tokens 1 8 16 …] [--json FILE]

Every figure runs over several copies of the weights in turn inside one CUDA graph, as the layers of a model do, so
that nothing is found in the L2 cache. Each result is checked against the dequantised weight before it is timed.
``--sweep`` tries other tiles than the stored ones and names the best for each shape and number of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn import functional as F

from octavo_quant.grouped import GroupedWeights, unpack_grouped
from octavo_quant.grouped.launch import (
    Tile,
    dequantise_rows,
    dequantised_product,
    packed_linear,
    product,
    stored_tiles,
)
from octavo_quant.grouped.weights import pack_for_kernels

SHAPES = {"qkv": (6144, 4096), "output": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
TOKENS = (1, 8, 16, 32, 64, 256, 1024, 2048, 8192)
GROUP = 128
COLD = 256e6  # bytes of weights in turn: several times the L2 cache
CHUNKS = (1 << 23, 1 << 24, 1 << 25, 1 << 26, 1 << 27)
Run = Callable[[int], torch.Tensor]


def seconds(run: Run, copies: int, repeats: int = 5) -> float:
    """Median device time of one product."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            run(copy)
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / copies)
    return statistics.median(times)


def weights_of(rows: int, width: int, bits: int) -> GroupedWeights:
    """Random codes with scales of a real layer's size."""
    codes = torch.randint(0, 2**bits, (rows, width), dtype=torch.uint8, device="cuda")
    scales = (torch.rand(rows, width // GROUP, device="cuda") + 0.5) * (0.02 / 2 ** (bits - 2))
    return pack_for_kernels(
        codes, scales, None, bits=bits, group_size=GROUP, permutation=None, dtype=torch.bfloat16
    )


def copied(weights: GroupedWeights) -> list[GroupedWeights]:
    """As many copies as it takes to leave the cache cold."""
    assert weights.words is not None
    assert weights.meta is not None
    fields = {name: getattr(weights, name) for name in GroupedWeights.__dataclass_fields__}
    count = max(2, min(64, int(COLD / weights.words.nbytes) + 1))
    return [GroupedWeights(**{**fields, "words": weights.words.clone()}) for _ in range(count)]


def tiles_for(tokens: int) -> Iterator[Tile]:
    """Candidates for so many tokens."""
    shapes: list[tuple[int, int, int, bool]] = []
    if tokens <= 16:
        shapes = [(16, 64, 4, False), (16, 128, 4, False), (16, 64, 2, False), (16, 64, 4, True)]
        shapes += [(16, 128, 4, True), (16, 256, 8, True), (16, 128, 8, False)]
        shapes += [(8, 64, 4, True), (8, 128, 4, True)] if tokens <= 8 else []
    elif tokens <= 32:
        shapes = [(32, 64, 4, False), (32, 64, 4, True), (32, 128, 4, True), (32, 128, 8, True)]
    elif tokens <= 64:
        shapes = [(64, 64, 4, True), (64, 128, 4, True), (64, 128, 8, True), (32, 128, 4, True)]
    elif tokens <= 1024:
        shapes = [(64, 128, 8, True), (128, 128, 8, True), (64, 256, 8, True), (128, 64, 4, True)]
    for block_m, block_n, warps, swap in shapes:
        for stages in (3, 5) if block_m <= 16 else (3, 4):
            for share in (1, 2, 3, 4, 6, 8) if block_m <= 16 else (1, 2, 3):
                tile = Tile(
                    block_m=block_m,
                    block_n=block_n,
                    programs=132 * share,
                    warps=warps,
                    stages=stages,
                    swap=swap,
                )
                yield tile
                if tokens == 1 and stages == 3:
                    yield replace(tile, early=not tile.early)


def compile_tile(job: tuple[Tile, int]) -> str:
    """Compile one tile in a process of its own: Triton keeps it on disk."""
    tile, bits = job
    try:
        weights = weights_of(tile.block_n * 2, 2048, bits)
        x = torch.zeros(tile.block_m, 2048, dtype=torch.bfloat16, device="cuda")
        for programs in (1, 64):
            product(x, weights, None, replace(tile, programs=programs))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{tile}: {type(error).__name__}: {error}"[:200]
    return ""


def precompile(bits: list[int], tokens: list[int]) -> None:
    """All tiles of the sweep, eight at a time."""
    began = time.time()
    kinds = {replace(tile, programs=1) for count in tokens for tile in tiles_for(count)}
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        for trouble in pool.map(compile_tile, [(tile, each) for each in bits for tile in kinds]):
            if trouble:
                print("left out:", trouble, flush=True)
    print(f"compiled {len(kinds) * len(bits)} kernels in {time.time() - began:.0f} s", flush=True)


def ways(tokens: int, sweep: bool) -> Iterator[tuple[str, dict[str, Any], Callable[..., torch.Tensor]]]:
    """Each way to run a product: its name, its settings and the function of (x, weights)."""
    yield "stored", {}, lambda x, weights: packed_linear(x, weights, None)
    if not sweep:
        return
    for tile in tiles_for(tokens):
        yield "tile", asdict(tile), lambda x, weights, tile=tile: product(x, weights, None, tile)
    for chunk in CHUNKS if tokens >= 64 else ():
        yield (
            "dequantise",
            {"elements": chunk},
            lambda x, weights, chunk=chunk: dequantised_product(x, weights, None, chunk),
        )


class Bench:
    """Prints a line a figure and keeps it as JSON."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.machine = torch.cuda.get_device_name()
        self.best: dict[tuple[str, int, int], float] = {}

    def add(self, shape: str, bits: int, tokens: int, way: str, settings: dict[str, Any], took: float) -> None:
        key = (shape, bits, tokens)
        self.best[key] = min(took, self.best.get(key, took))
        if self.out:
            line = {"workload": f"{shape} {bits}-bit", "tokens": tokens, "way": way, **settings}
            line |= {"metric": "time_us", "value": round(took * 1e6, 2), "unit": "us", "machine": self.machine}
            line |= {"versions": {"torch": torch.__version__, "triton": triton.__version__}}
            with self.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def report(bench: Bench, shape: str, bits: int, tokens: int, plain: float, took: dict[str, float]) -> None:
    """One line: the stored way, the best of the sweep, and what both are to bfloat16."""
    rows, width = SHAPES[shape]
    nbytes = rows * width * (bits / 8 + 4 / GROUP) + 2 * tokens * (rows + width)
    best = min(took, key=took.__getitem__)
    stored = took.get("stored {}", float("nan"))
    line = f"{shape:8s} {bits}-bit M={tokens:5d}  bf16 {plain * 1e6:8.1f} us"
    line += f"  stored {stored * 1e6:8.1f} us {plain / stored:5.2f}x"
    line += f"  best {took[best] * 1e6:8.1f} us {plain / took[best]:5.2f}x {nbytes / took[best] / 1e9:6.0f} GB/s"
    line += f" {2e-12 * rows * width * tokens / took[best]:6.1f} TFLOP/s  {best}"
    print(line, flush=True)


def plain_times(rows: int, width: int, tokens: list[int]) -> dict[int, float]:
    """Seconds of torch's own product in bfloat16."""
    count = int(COLD / (2 * rows * width)) + 2
    dense = [torch.randn(rows, width, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(count)]
    times = {}
    for m in tokens:
        x = torch.randn(m, width, dtype=torch.bfloat16, device="cuda")
        times[m] = seconds(lambda copy, x=x: F.linear(x, dense[copy]), count)
    return times


def bench_dequantise(bench: Bench, shape: str, bits: int, copies: list[GroupedWeights]) -> None:
    """What it takes to write the whole weight out, apart from any product."""
    out = torch.empty(SHAPES[shape], dtype=torch.bfloat16, device="cuda")

    def run(copy: int) -> torch.Tensor:
        dequantise_rows(copies[copy], 0, out)
        return out

    took = seconds(run, len(copies))
    nbytes = out.numel() * (bits / 8 + 4 / GROUP + 2)
    print(f"{shape:8s} {bits}-bit dequantise {took * 1e6:8.1f} us {nbytes / took / 1e9:6.0f} GB/s", flush=True)
    bench.add(shape, bits, 0, "dequantise alone", {}, took)


def bench_shape(bench: Bench, shape: str, bits: list[int], tokens: list[int], sweep: bool) -> None:
    """One layer shape at all numbers of tokens."""
    rows, width = SHAPES[shape]
    plain = plain_times(rows, width, tokens)
    for m in tokens:
        bench.add(shape, 16, m, "bf16", {}, plain[m])
    for each in bits:
        copies = copied(weights_of(rows, width, each))
        whole = unpack_grouped(copies[0])
        bench_dequantise(bench, shape, each, copies)
        for m in tokens:
            x = torch.randn(m, width, dtype=torch.bfloat16, device="cuda")
            wanted = x.float() @ whole.T
            took = {}
            for way, settings, run in ways(m, sweep):
                label = f"{way} {' '.join(f'{k}={v}' for k, v in settings.items()) or '{}'}"
                try:
                    error = float((run(x, copies[0]).float() - wanted).norm() / wanted.norm())
                    if error > 1e-2:
                        print(f"WRONG {shape} {each}-bit M={m} {label}: error {error:.1e}", flush=True)
                        continue
                    took[label] = seconds(lambda copy, x=x, run=run, c=copies: run(x, c[copy]), len(copies))
                except triton.runtime.errors.OutOfResources:
                    continue
                bench.add(shape, each, m, way, settings, took[label])
            report(bench, shape, each, m, plain[m], took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, tiles {len(stored_tiles().rules)}", flush=True)
    if arguments.sweep:
        precompile(arguments.bits, arguments.tokens)
    bench = Bench(arguments.json)
    for shape in arguments.shapes:
        bench_shape(bench, shape, arguments.bits, arguments.tokens, arguments.sweep)
    for m in arguments.tokens:
        for each in arguments.bits:
            sums = [sum(bench.best[shape, b, m] for shape in arguments.shapes) for b in (16, each)]
            print(f"all layers, {each}-bit, M={m}: {sums[0] / sums[1]:.2f}x of bf16", flush=True)


if __name__ == "__main__":
    main()
