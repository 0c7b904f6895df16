"""Times FP8 linear layers on one GPU against bf16, and against what reading weights or multiplying must take.

    python benchmarks/gpu/fp8_bench.py [--models 8b,70b] [--tokens 1,8,32] [--only NAMES] [--sweep] [--json FILE]

Layers run inside one CUDA graph over copies of the weights that do not fit the L2 cache, as the layers of a model
do. Times of FP8 include quantising the activations, but for those named "product". ``--sweep`` tries other tiles
for few tokens and names the best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from octavo_quant.fp8 import launch
from octavo_quant.fp8.linear import Fp8Weights, multiply, scaled_matmul

SHAPES = {
    "8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    "70b": {"qkv": (10240, 8192), "o": (8192, 8192), "gate_up": (57344, 8192), "down": (8192, 28672)},
}
TOKENS = (1, 8, 32, 64, 128, 256, 2048, 8192)
SPILL = 160 << 20  # bytes of weights that are read in turn: more than any L2
BANDWIDTH, OPERATIONS = 4.24e12, 1.458e15
E4M3 = torch.float8_e4m3fn
Run = Callable[[int], Tensor]


@dataclass(frozen=True)
class Layer:
    """Copies of one layer's weights in both types."""

    plain: list[Tensor]
    rows: list[Fp8Weights]
    blocks: list[Fp8Weights]

    @property
    def shape(self) -> torch.Size:
        return self.plain[0].shape


def make_layer(outputs: int, size: int) -> Layer:
    count = max(2, -(-SPILL // (outputs * size)))
    plain, rows, blocks = [], [], []
    for _ in range(count):
        codes = (torch.randn(outputs, size, device="cuda") * 64).clamp_(-448, 448).to(E4M3)
        scale = 0.02 / 64
        rows.append(Fp8Weights(codes, torch.full((outputs,), scale, device="cuda")))
        blocks.append(Fp8Weights(codes, torch.full((outputs, size // 128), scale, device="cuda")))
        plain.append((codes.float() * scale).to(torch.bfloat16))
    return Layer(plain, rows, blocks)


def ways(layer: Layer, x: Tensor) -> dict[str, Run]:
    """What is timed, by name; each takes the number of the copy of the weights."""
    tokens = x.shape[0]
    codes, scales = launch.quantise_rows(x)
    found: dict[str, Run] = {
        "bf16": lambda i: F.linear(x, layer.plain[i]),
        "fp8 token": lambda i: multiply(layer.rows[i], x, None, "fp8"),
        "fp8 tensor": lambda i: _tensorwise(layer.rows[i], x),
        "fp8 block": lambda i: multiply(layer.blocks[i], x, None, "fp8"),
        "weights only": lambda i: multiply(layer.rows[i], x, None, "16-bit"),
        "quantise": lambda i: launch.quantise_rows(x)[0],
        "cublas product": lambda i: scaled_matmul(codes, scales, layer.rows[i], None, x.dtype),
    }
    if tokens <= 256:
        found["triton product"] = lambda i: launch.matmul(
            codes, scales, layer.rows[i].codes, layer.rows[i].scales, None, x.dtype
        )
    return found


def _tensorwise(weights: Fp8Weights, x: Tensor) -> Tensor:
    """One scale for all activations, found on the device: what per-tensor dynamic quantisation costs."""
    scale = x.abs().amax().float().clamp_(min=1e-12) / 448
    codes = (x / scale).clamp_(-448, 448).to(E4M3)
    return torch._scaled_mm(
        codes, weights.codes.t(), scale_a=scale, scale_b=weights.scales[0], out_dtype=x.dtype, use_fast_accum=True
    )


def microseconds(run: Run, copies: int) -> float:
    """The median over graph replays of one call's time."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    calls = max(copies, 8) // copies * copies
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(call % copies)
    graph.replay()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return sorted(times)[2]


def check(layer: Layer, x: Tensor, name: str, run: Run) -> None:
    """Against bf16, whose weights are the same numbers."""
    if name == "quantise":
        return
    expected = F.linear(x, layer.plain[0]).float()
    error = float((run(0).float() - expected).norm() / expected.norm())
    assert error < 0.05, f"{name}, {tuple(x.shape)} x {tuple(layer.shape)}: error {error:.3f}"


def write(args: argparse.Namespace, workload: str, metric: str, value: float, **more: Any) -> None:
    if args.json:
        line = {"workload": workload, "metric": metric, "value": round(value, 2), "unit": "us", **more}
        line |= {"machine": torch.cuda.get_device_name(), "date": date.today().isoformat()}
        line |= {"command": " ".join(sys.argv)}
        line |= {"versions": {"torch": torch.__version__, "triton": triton.__version__}}
        with args.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


def bench(args: argparse.Namespace) -> None:
    for model in args.models:
        for name, (outputs, size) in SHAPES[model].items():
            layer = make_layer(outputs, size)
            for tokens in args.tokens:
                x = torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16)
                floor = max(outputs * size / BANDWIDTH, 2 * tokens * outputs * size / OPERATIONS) * 1e6
                line, plain = f"{model} {name:8s} {tokens:5d} floor {floor:7.1f} |", 0.0
                for way, run in ways(layer, x).items():
                    if args.only and way not in args.only:
                        continue
                    check(layer, x, way, run)
                    time = microseconds(run, len(layer.plain))
                    plain = time if way == "bf16" else plain
                    rate = 2 * tokens * outputs * size / time / 1e6
                    line += f" {way} {time:.1f}" + (f" ({plain / time:.2f}x)" if plain and way != "bf16" else "")
                    write(
                        args, f"{model} {name} {tokens}", way, time, floor_us=round(floor, 2), tflops=round(rate, 1)
                    )
                print(line, flush=True)
            del layer
            torch.cuda.empty_cache()


def sweep(args: argparse.Namespace) -> None:
    """Tiles for few tokens: the best three of each shape."""
    for model in args.models:
        for name, (outputs, size) in SHAPES[model].items():
            layer = make_layer(outputs, size)
            for tokens in (1, 16, 32, 64, 128):
                x = torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16)
                codes, scales = launch.quantise_rows(x)
                base, times = launch.tile_for(min(tokens, 64), False, False), {}
                for high in (64, 128):
                    for wide in (128, 256):
                        for stages in (3, 4, 5, 6):
                            tile = replace(base, outputs=high, inputs=wide, stages=stages)
                            times[tile] = _timed(layer, codes, scales, tile)
                best = sorted(times, key=lambda tile: times[tile])[:3]
                told = "; ".join(f"{t.outputs}x{t.inputs}/{t.stages} {times[t]:.1f}" for t in best)
                print(f"{model} {name:8s} {tokens:4d} now {times.get(base, 0):.1f} | {told}", flush=True)
                for tile in best:
                    write(args, f"sweep {model} {name} {tokens}", str(tile), times[tile])
            del layer
            torch.cuda.empty_cache()


def _timed(layer: Layer, codes: Tensor, scales: Tensor, tile: launch.Tile) -> float:
    def run(i: int) -> Tensor:
        weights = layer.rows[i]
        return launch.matmul(codes, scales, weights.codes, weights.scales, None, torch.bfloat16, tile)

    try:
        return microseconds(run, len(layer.rows))
    except triton.runtime.errors.OutOfResources:
        return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["8b"])
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=TOKENS)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with torch.inference_mode():
        (sweep if args.sweep else bench)(args)


if __name__ == "__main__":
    main()
