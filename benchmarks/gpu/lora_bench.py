"""LoRA on one GPU: the kernels against what they must move, a model with adapters, and loading while it serves.

    python benchmarks/gpu/lora_bench.py [--only kernels|serving|loading] [--shape 8b] [--out FILE.jsonl]

The floor of a kernel row is the time for the bytes that must be moved, at the speed of a device copy: each
adapter's weights once, inputs read, outputs read and written. Decode rows run through 32 layers of launches over
several layers' weights in turn, inside one CUDA graph, and use the tables that are made on the device; prefill rows
run eagerly over tables made on the host. Each shape is checked against torch before it is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_bench import DEVICE, Report, captured, copy_speed, seconds

from octavo import AsyncEngine, SamplingParams
from octavo.contracts.lora import LoraPart, LoraSite
from octavo_bench.adapters import with_adapters, write_adapters
from octavo_bench.engine import running, timed
from octavo_bench.launch import launch_sections
from octavo_bench.presets import PRESETS
from octavo_bench.sizes import draw_sizes, random_jobs
from octavo_lora.launch import SiteLaunch
from octavo_lora.slots import SiteSlots
from octavo_lora.tiles import Tiles, device_tiles, host_tiles

SITES = {"qkv": (4096, (4096, 1024, 1024)), "o": (4096, (4096,)), "gate_up": (4096, (14336,) * 2)}
SITES["down"] = (14336, (4096,))
LAYERS, COPIES, SLOTS = 32, 4, 32
DECODES = [(1, 1), (8, 1), (8, 8), (32, 32), (64, 8), (256, 1), (256, 8), (256, 32)]
PREFILLS = [(512, 1), (2048, 1), (2048, 4), (8192, 1), (8192, 16)]


def site_of(inputs: int, outputs: Sequence[int]) -> LoraSite:
    offsets = np.cumsum([0, *outputs])
    parts = [
        LoraPart(module=str(at), out_features=width, out_shard=slice(0, width), offset=int(offsets[at]))
        for at, width in enumerate(outputs)
    ]
    return LoraSite(
        parts=tuple(parts),
        in_features=inputs,
        in_shard=slice(0, inputs),
        adds_bias=True,
        dtype=torch.bfloat16,
        device=torch.device(DEVICE),
        columns=lambda start, stop: torch.zeros(0),
    )


def filled(inputs: int, outputs: Sequence[int], rank: int) -> SiteSlots:
    """All slots taken by random adapters of one rank."""
    store = SiteSlots(site_of(inputs, outputs), SLOTS, rank)
    store.down.normal_().mul_(inputs**-0.5)
    store.up.normal_()
    store.facts[1:, :-1] = rank
    store.ranks = [(rank,) * len(outputs)] * (SLOTS + 1)
    return store


@dataclass
class Case:
    """One layer's inputs and outputs, the slots of its tokens, and the tables made of them."""

    stores: Mapping[str, Sequence[SiteSlots]]
    rank: int
    slots: np.ndarray
    tiles: Tiles

    def __post_init__(self) -> None:
        tokens = len(self.slots)
        self.x = {width: torch.randn(tokens, width, device=DEVICE).bfloat16() for width in (4096, 14336)}
        self.outs = {
            name: torch.randn(tokens, sum(outputs), device=DEVICE).bfloat16()
            for name, (_, outputs) in SITES.items()
        }
        early = torch.cuda.get_device_capability() >= (9, 0)
        self.launches = {name: [SiteLaunch(one, early) for one in stores] for name, stores in self.stores.items()}

    def site(self, name: str, copy: int) -> None:
        self.launches[name][copy](self.x[SITES[name][0]], self.outs[name], self.tiles)

    def model(self, layers: int = LAYERS) -> None:
        for layer in range(layers):
            for name in SITES:
                self.site(name, layer % COPIES)

    def bytes(self) -> int:
        """What one layer must move."""
        tokens, used = len(self.slots), len(np.unique(self.slots))
        moved = 0
        for inputs, outputs in SITES.values():
            moved += 2 * used * self.rank * (inputs * len(outputs) + sum(outputs))
            moved += 2 * tokens * (inputs + 2 * sum(outputs))
        return moved

    def error(self) -> float:
        """Relative error of the change to the output of one layer, at its worst site."""
        worst = 0.0
        for name, (inputs, _) in SITES.items():
            store, x, before = self.stores[name][0], self.x[inputs], self.outs[name].clone()
            self.site(name, 0)
            change = self.outs[name].float() - before.float()
            expected = torch.zeros_like(change)
            for slot in np.unique(self.slots):
                rows = torch.from_numpy(np.flatnonzero(self.slots == slot)).to(DEVICE)
                for at, part in enumerate(store.site.parts):
                    columns = slice(part.offset, part.offset + part.width)
                    low = x[rows].float() @ store.down[slot, at].float().T
                    expected[rows, columns] = low @ store.up[slot, :, columns].float()
            worst = max(worst, float((change - expected).norm() / expected.norm()))
            self.outs[name].copy_(before)
        return worst


def kernels(report: Report) -> None:
    speed = copy_speed()
    report.add("device copy", "gb_s", speed / 1e9, "GB/s")
    for rank in (16, 64):
        stores = {name: [filled(*SITES[name], rank) for _ in range(COPIES)] for name in SITES}
        for tokens, used in (*DECODES, *PREFILLS):
            slots = np.sort(np.arange(tokens) % used + 1) if tokens >= 512 else np.arange(tokens) % used + 1
            decode = tokens < 512
            on_device = torch.from_numpy(slots).to(DEVICE)
            made = device_tiles(on_device, SLOTS) if decode else host_tiles(slots, torch.device(DEVICE))
            assert made is not None
            case = Case(stores, rank, slots, made)
            error = case.error()
            if not error < 0.02:
                raise SystemExit(f"{tokens} tokens, {used} adapters of rank {rank}: relative error {error:.3g}")
            label = f"{'decode' if decode else 'prefill'} {tokens}, {used} adapters, r{rank}"
            floor = LAYERS * case.bytes() / speed
            took = seconds(captured(case.model) if decode else case.model, 5)
            note = f"floor {floor * 1e3:.2f} ms, {floor / took:4.0%}"
            report.add(label, "lora_ms_a_step", took * 1e3, "ms", note, floor_ms=floor * 1e3)
            if (tokens, used) in ((256, 32), (256, 1), (8192, 1)):
                for name in SITES:
                    alone = seconds(captured(sites(case, name)), 5) / LAYERS
                    report.add(label, f"{name}_us", alone * 1e6, "us", "both launches")
        if rank == 16:
            rows = torch.arange(256, device=DEVICE) % 32 + 1
            took = seconds(captured(partial(device_tiles, rows, 32)))
            report.add("tables of 256 rows", "plan_us", took * 1e6, "us", "in a graph")
            report.add("tables of 8192 tokens", "plan_us", host_plan() * 1e6, "us", "on the host")


def sites(case: Case, name: str) -> Callable[[], None]:
    def run() -> None:
        for layer in range(LAYERS):
            case.site(name, layer % COPIES)

    return run


def host_plan() -> float:
    slots = np.repeat(np.arange(16) + 1, 512)
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        host_tiles(slots, torch.device(DEVICE))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def serving(report: Report, shape: str, repeats: int) -> None:
    """256 requests of 512 tokens in and 128 out: the base model, then 1, 8 and 32 adapters, all in one engine."""
    sections = launch_sections(
        config=None, model=None, shape=shape, preset=PRESETS["W8"], prefix_cache="off", overrides=[]
    )
    began = time.perf_counter()
    with sections as plain, with_adapters(plain, 32, 16) as (adapted, names), running(adapted) as engine:
        report.add(f"W8 {shape}", "startup_s", time.perf_counter() - began, "s")
        sizes = draw_sizes(256, *(PRESETS["W8"].options[name] for name in ("input_len", "output_len")), 0)
        vocabulary = engine.context.model.vocab_size
        timed(engine, random_jobs(sizes[:128], vocabulary, 99), adapters=names[:8])
        found: dict[int, list[float]] = {0: [], 1: [], 8: [], 32: []}
        for repeat in range(repeats):
            for count, rates in found.items():
                timing = timed(engine, random_jobs(sizes, vocabulary, repeat), adapters=names[:count])
                rates.append(timing.rates["output_tok_s"])
        base = statistics.median(found[0])
        for count, rates in found.items():
            rate = statistics.median(rates)
            report.add(
                f"W8 {shape}, {count} adapters r16", "output_tok_s", rate, "tok/s", f"{rate / base:.1%} of base"
            )


async def loading(report: Report, shape: str) -> None:
    """64 streams decode while cold adapters are read from disk and answer: gaps between tokens, and the waits."""
    sections = launch_sections(
        config=None, model=None, shape=shape, preset=PRESETS["W8"], prefix_cache="off", overrides=[]
    )
    with sections as plain, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_adapters(plain["model"]["path"], folder, 12, 16)
        lora = {"use": "triton", "options": {"max_loaded": 8, "max_rank": 16}}
        lora["adapters"] = [{"name": one, "path": str(folder / one)} for one in names[:4]]
        async with AsyncEngine(config={**plain, "lora": lora}) as engine:
            gaps: list[tuple[float, float]] = []
            streams = [asyncio.create_task(follow(engine, names[at % 4], 700, gaps)) for at in range(64)]
            await asyncio.sleep(4)
            windows, loads, waits = [], [], []
            for one in names[4:]:
                begin = time.perf_counter()
                await engine.load_adapter(one, folder / one)
                loads.append(time.perf_counter() - begin)
                await follow(engine, one, 1, [])
                waits.append(time.perf_counter() - begin)
                windows.append((begin, begin + waits[-1]))
                await asyncio.sleep(0.3)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
    during = [gap for at, gap in gaps if any(begin <= at <= end + 0.02 for begin, end in windows)]
    quiet = [gap for at, gap in gaps if windows[0][0] - 2 <= at < windows[0][0]]
    report.add("cold adapter r16", "load_ms", statistics.median(loads) * 1e3, "ms", f"worst {max(loads) * 1e3:.0f}")
    report.add("cold adapter r16", "load_and_first_token_ms", statistics.median(waits) * 1e3, "ms")
    for label, found in (("quiet", quiet), ("loading", during)):
        report.add(f"64 streams, {label}", "itl_p50_ms", float(np.percentile(found, 50)) * 1e3, "ms")
        report.add(
            f"64 streams, {label}", "itl_p99_ms", float(np.percentile(found, 99)) * 1e3, "ms", f"{len(found)}"
        )


async def follow(engine: AsyncEngine, name: str, tokens: int, gaps: list[tuple[float, float]]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    last = None
    async for _ in engine.generate(list(range(1000, 1256)), params, adapter=name):
        now = time.perf_counter()
        if last is not None:
            gaps.append((now, now - last))
        last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("kernels", "serving", "loading"))
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args: Any = parser.parse_args()
    report = Report(args.out)
    if args.only in (None, "kernels"):
        with torch.inference_mode():
            kernels(report)
        torch.cuda.empty_cache()
    if args.only in (None, "serving"):
        serving(report, args.shape, args.repeats)
    if args.only in (None, "loading"):
        asyncio.run(loading(report, args.shape))


if __name__ == "__main__":
    main()
