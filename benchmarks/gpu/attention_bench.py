"""Times the Triton attention kernels on one GPU, against its copy speed and the operations of a causal mask.

    python benchmarks/gpu/attention_bench.py [--only decode|prefill] [--sweep] [--out FILE.jsonl]

Decode runs over several caches in turn inside one CUDA graph, as the layers of a model do, so that nothing is
found in the L2 cache. Prefill counts 4 * heads * head_dim operations for each pair of query and visible key.
Each result is checked against torch before it is timed. ``--sweep`` tries other tile sizes and names the best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo_attention.launch import (
    DecodeConfig,
    PrefillConfig,
    Scratch,
    decode,
    decode_config,
    prefill,
    prefill_config,
    write,
)
from octavo_attention.plan import make_plan

SPEC = AttentionSpec(layer=0, num_heads=32, num_kv_heads=8, head_dim=128, scale=1 / math.sqrt(128))
DECODES = {
    "b64 x 4096": [4096] * 64,
    "b256 x 100-1500": np.random.default_rng(1).integers(100, 1500, 256).tolist(),
    "b1024 x 640": [640] * 1024,
    "b64 x 200-2000": np.random.default_rng(2).integers(200, 2000, 64).tolist(),
    "b32 x 256": [256] * 32,
    "b8 x 256": [256] * 8,
    "b1 x 256": [256],
    "b1 x 4096": [4096],
}
PREFILLS = {
    "1 x 16384": [(16384, 0)],
    "8 x 1024": [(1024, 0)] * 8,
    "64 x 512": [(512, 0)] * 64,
    "2 x 7900": [(7900, 0)] * 2,
    "8192 behind 8192": [(8192, 8192)],
    "64 behind 2048, 64 rows": [(64, 2048)] * 64,
}
DEVICE = "cuda"
EARLY = torch.cuda.get_device_capability() >= (9, 0)


@dataclass
class Report:
    """Prints a line a figure and keeps it as JSON."""

    out: Path | None

    def add(self, workload: str, metric: str, value: float, unit: str, note: str = "", **more: Any) -> None:
        print(f"{workload:34s} {metric:22s} {value:10.1f} {unit:8s} {note}", flush=True)
        if self.out:
            line = {"workload": workload, "metric": metric, "value": value, "unit": unit, **more}
            line |= {"machine": torch.cuda.get_device_name(), "date": date.today().isoformat()}
            line |= {
                "command": " ".join(sys.argv),
                "versions": {"torch": torch.__version__, "triton": triton.__version__},
            }
            with self.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median of ``repeats`` timings of one call, in seconds of device time, after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` as a CUDA graph, free of the host's pace."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def make_batch(rows: list[tuple[int, int]], block_size: int) -> tuple[StepBatch, int]:
    """Rows of (new tokens, context) with blocks in random order; also the number of blocks."""
    new = np.array([row[0] for row in rows], dtype=np.int32)
    lens = new + np.array([row[1] for row in rows], dtype=np.int32)
    counts = -(-lens // block_size)
    blocks = np.random.default_rng(0).permutation(int(counts.sum())).astype(np.int32)
    tables = np.zeros((len(rows), int(counts.max())), dtype=np.int32)
    slots, at = [], 0
    for r, count in enumerate(counts):
        tables[r, :count] = blocks[at : at + count]
        at += count
        positions = np.arange(lens[r] - new[r], lens[r])
        slots.append(tables[r, positions // block_size].astype(np.int64) * block_size + positions % block_size)
    batch = StepBatch(
        num_tokens=int(new.sum()),
        num_rows=len(rows),
        decodes=int((new == 1).sum()),
        positions=torch.zeros(int(new.sum()), dtype=torch.int64, device=DEVICE),
        slots=torch.tensor(np.concatenate(slots), device=DEVICE),
        block_tables=torch.tensor(tables, device=DEVICE),
        seq_lens=torch.tensor(lens, device=DEVICE),
        query_starts=torch.tensor(np.concatenate([[0], np.cumsum(new)]), dtype=torch.int32, device=DEVICE),
        seq_lens_host=lens,
        query_lens_host=new,
        block_tables_host=tables,
    )
    return batch, int(counts.sum())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE)


def history(cache: torch.Tensor, batch: StepBatch, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one row, [kv_heads, length, head_dim], as torch reads them."""
    pages = cache[batch.block_tables[row].long()]
    heads = pages.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, : int(batch.seq_lens_host[row])]
    return heads[0], heads[1]


def wrong(query: torch.Tensor, out: torch.Tensor, cache: torch.Tensor, batch: StepBatch) -> float:
    """Relative error on the last row, against float32 attention of its last 256 tokens."""
    row, new = batch.num_rows - 1, int(batch.query_lens_host[-1])
    keep = min(new, 256)
    k, v = (t.float().repeat_interleave(SPEC.num_heads // SPEC.num_kv_heads, 0) for t in history(cache, batch, row))
    q = query[-keep:].float().transpose(0, 1)
    logits = q @ k.transpose(1, 2) * SPEC.scale
    length = k.shape[1]
    position = torch.arange(length - keep, length, device=DEVICE)
    logits.masked_fill_(torch.arange(length, device=DEVICE)[None, :] > position[:, None], -math.inf)
    expected = (logits.softmax(-1) @ v).transpose(0, 1)
    got = out.view(query.shape)[-keep:].float()
    return float((got - expected).norm() / expected.norm())


def copy_speed() -> float:
    """Bytes read and written each second by a device copy."""
    source = torch.empty(1 << 30, dtype=torch.int16, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def decode_configs(sweep: bool, processors: int) -> Iterator[DecodeConfig]:
    """The usual configuration first; with ``sweep`` others as well."""
    usual = decode_config(128, 2, processors, rows=64)
    yield usual
    tiles = {(32, 3): (3, 4), (32, 4): (2, 3, 4), (32, 5): (2, 3), (64, 3): (1, 2, 3), (64, 4): (1, 2, 3)}
    tiles |= {(64, 5): (1, 2), (128, 3): (1, 2), (128, 4): (1,)}
    for (block_n, stages), shares in tiles.items() if sweep else ():
        for share in shares:
            config = DecodeConfig(block_n, share * processors, 4, stages, 168 if share == 3 else None)
            if config != usual:
                yield config
    if sweep:
        yield DecodeConfig(64, processors, 8, 5)


class DecodeShape:
    """Decode of rows with ``contexts`` keys each, over several caches as over a model's layers."""

    def __init__(self, contexts: list[int], block_size: int) -> None:
        rows = len(contexts)
        self.batch, blocks = make_batch([(1, context - 1) for context in contexts], block_size)
        self.plan = make_plan(self.batch)
        self.caches = [random(blocks, SPEC.num_kv_heads, 2, block_size, SPEC.head_dim) for _ in range(2)]
        while len(self.caches) < 128 and len(self.caches) * self.caches[0].nbytes < 400e6:
            self.caches.append(self.caches[0].clone())
        self.query = random(rows, SPEC.num_heads, SPEC.head_dim)
        self.key, self.value = (random(rows, SPEC.num_kv_heads, SPEC.head_dim) for _ in range(2))
        self.out = torch.empty_like(self.query.flatten(1))
        self.scratch = Scratch(torch.device(DEVICE))
        self.bytes = sum(contexts) * 2 * SPEC.num_kv_heads * SPEC.head_dim * self.query.element_size()

    def layers(self, config: DecodeConfig, store: bool = False) -> None:
        """All layers once, with the write of the new keys and values where ``store``."""
        for cache in self.caches:
            if store:
                write(self.key, self.value, cache, self.batch.slots, len(self.query), clean=False, early=EARLY)
            decode(self.plan, SPEC, self.query, cache, self.out, config, self.scratch, EARLY)

    def error(self, config: DecodeConfig) -> float:
        """Relative error of one layer."""
        self.layers(config)
        return wrong(self.query, self.out, self.caches[-1], self.batch)

    def time(self, config: DecodeConfig, store: bool = False) -> float:
        """Seconds a layer."""
        return seconds(captured(lambda: self.layers(config, store))) / len(self.caches)


def bench_decode(report: Report, sweep: bool, block_size: int) -> None:
    """Decode attention as a share of copy bandwidth."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    ceiling = copy_speed()
    report.add("copy", "bandwidth", ceiling / 1e9, "GB/s")
    for name, contexts in DECODES.items():
        shape = DecodeShape(contexts, block_size)
        took: dict[DecodeConfig, float] = {}
        for config in decode_configs(sweep, processors):
            try:
                error = shape.error(config)
            except triton.runtime.errors.OutOfResources:
                continue
            took[config] = shape.time(config)
            rate = shape.bytes / took[config]
            note = f"{took[config] * 1e6:8.1f} us {rate / ceiling:6.1%} of copy  error {error:.1e}  {short(config)}"
            report.add(f"decode {name}", "bandwidth", rate / 1e9, "GB/s", note, config=asdict(config), error=error)
        whole = shape.time(next(iter(took)), store=True)
        report.add(f"decode {name}, with write", "time", whole * 1e6, "us")
        if sweep:
            for best in sorted(took, key=took.__getitem__)[:4]:
                print(f"best for {name}: {took[best] * 1e6:.1f} us  {short(best)}", flush=True)


def short(config: object) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(config).items())  # type: ignore[call-overload]


def prefill_kernels(sweep: bool, processors: int) -> Iterator[tuple[str, Callable[..., None]]]:
    """Each kernel and configuration, as a name and a function of (plan, spec, query, cache, out)."""
    usual = prefill_config(128, 2)
    configs = [usual]
    if sweep:
        configs += [replace(usual, stages=5), replace(usual, block_n=128), PrefillConfig(64, 64, 4, 3)]
        configs += [PrefillConfig(64, 64, 4, 5), PrefillConfig(64, 32, 4, 5), replace(usual, block_n=32, stages=5)]
    for config in configs:
        yield f"portable {short(config)}", partial(prefill, config=config)
    if torch.cuda.get_device_capability() != (9, 0):
        return
    from octavo_attention.launch_hopper import HopperConfig, HopperPrefill, hopper_config

    others = [HopperConfig(64, 2), HopperConfig(64, 3), HopperConfig(64, 4)] if sweep else []
    for chosen in [hopper_config(128, 16384), *others]:
        yield f"hopper {short(chosen)}", partial(HopperPrefill(processors).prefill, config=chosen)


def bench_prefill(report: Report, sweep: bool, block_size: int) -> None:
    """Prefill attention in TFLOP/s, and torch's own for the shapes that it can do."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for name, rows in PREFILLS.items():
        batch, blocks = make_batch(rows, block_size)
        pairs = sum(new * context + new * (new + 1) // 2 for new, context in rows)
        work = 4 * SPEC.num_heads * SPEC.head_dim * pairs
        cache = random(blocks, SPEC.num_kv_heads, 2, block_size, SPEC.head_dim)
        query = random(batch.num_tokens, SPEC.num_heads, SPEC.head_dim)
        out = torch.empty_like(query.flatten(1))
        for label, kernel in prefill_kernels(sweep, processors):
            run = partial(kernel, make_plan(batch), SPEC, query, cache, out)
            try:
                run()
            except triton.runtime.errors.OutOfResources:
                continue
            error = wrong(query, out, cache, batch)
            took = seconds(captured(run))
            note = f"{took * 1e6:8.1f} us  error {error:.1e}  {label}"
            report.add(f"prefill {name}", "rate", work / took / 1e12, "TFLOP/s", note, config=label, error=error)
        if rows == [(rows[0][0], 0)] * len(rows):
            torch_peers(report, name, len(rows), rows[0][0], work)


def torch_peers(report: Report, name: str, count: int, length: int, work: int) -> None:
    """What torch's own attention makes of the same shape, with contiguous keys and values."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = random(count, SPEC.num_heads, length, SPEC.head_dim)
    k, v = (random(count, SPEC.num_kv_heads, length, SPEC.head_dim) for _ in range(2))
    attend = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        label = f"torch {backend.name}"
        try:
            with sdpa_kernel(backend):
                took = seconds(attend)
        except RuntimeError as error:
            print(f"{label}: {error}", flush=True)
            continue
        note = f"{took * 1e6:8.1f} us  {label}"
        report.add(f"prefill {name}", "rate", work / took / 1e12, "TFLOP/s", note, config=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["decode", "prefill"])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    report = Report(arguments.out)
    if arguments.only != "prefill":
        bench_decode(report, arguments.sweep, arguments.block_size)
    if arguments.only != "decode":
        bench_prefill(report, arguments.sweep, arguments.block_size)


if __name__ == "__main__":
    main()
