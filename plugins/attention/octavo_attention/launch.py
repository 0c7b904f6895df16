"""Launches the kernels: tile sizes for each head size and type, grids and scratch memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from octavo.ahead import launch
from octavo.contracts.attention import AttentionSpec
from octavo.early import early_options
from octavo_attention.kernels.decode import decode_kernel, split_kernel
from octavo_attention.kernels.kv_write import kv_write_kernel
from octavo_attention.kernels.prefill import prefill_kernel
from octavo_attention.plan import AttentionPlan

LOG2E = 1.4426950408889634
_SEARCHED = 4096  # ends of rows that one program of the split looks at


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """``block_n`` keys a tile; ``programs`` share the work, all resident at once; ``registers`` caps a thread's."""

    block_n: int
    programs: int
    warps: int = 4
    stages: int = 5  # block table and pages take turns: with 5, two page tiles are on their way
    registers: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """``block_m`` rows (query tokens times heads of a group) by ``block_n`` keys."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def decode_config(dim: int, itemsize: int, processors: int, rows: int) -> DecodeConfig:
    """Found by ``benchmarks/gpu/attention_bench.py --sweep`` on an H200.

    Two programs a processor with two tiles on their way keep the memory busy. Fewer rows are bound by latency
    instead: larger tiles, and fewer partial results to merge.
    """
    block_n = max(16, min(64, 16384 // (dim * itemsize)))
    if rows <= 2:
        return DecodeConfig(block_n, programs=processors, stages=3)
    if rows <= 64:
        return DecodeConfig(2 * block_n, programs=processors if rows <= 16 else 2 * processors, stages=3)
    return DecodeConfig(block_n, programs=2 * processors, stages=5)


def prefill_config(dim: int, itemsize: int) -> PrefillConfig:
    """Tiles whose accumulators fit the registers: see the no-spill test."""
    if itemsize == 4:
        return PrefillConfig(block_m=32, block_n=16, warps=8, stages=2)
    if dim > 128:
        return PrefillConfig(block_m=64, block_n=32, warps=4, stages=3)
    return PrefillConfig(block_m=128, block_n=64, warps=8, stages=3)


@dataclass(slots=True)
class Scratch:
    """Device memory that launches share. Nothing is ever given back: captured graphs hold its addresses."""

    device: torch.device
    counters: dict[int, torch.Tensor] = field(default_factory=dict)
    partials: dict[int, torch.Tensor] = field(default_factory=dict)

    def counter(self, size: int) -> torch.Tensor:
        """At least ``size`` int32, all 0 between launches."""
        size = max(4096, triton.next_power_of_2(size))
        if size not in self.counters:
            self.counters[size] = torch.zeros(size, dtype=torch.int32, device=self.device)
        return self.counters[size]

    def partial(self, size: int) -> torch.Tensor:
        """``size`` float32 of any content."""
        if size not in self.partials:
            self.partials[size] = torch.empty(size, dtype=torch.float32, device=self.device)
        return self.partials[size]


def layer_constants(spec: AttentionSpec, cache: torch.Tensor) -> dict[str, Any]:
    """What both attention kernels know of a layer when they are compiled."""
    return {
        "KV_HEADS": spec.num_kv_heads,
        "GROUP": spec.num_heads // spec.num_kv_heads,
        "HEAD_DIM": spec.head_dim,
        "BLOCK_SIZE": cache.shape[3],
        "WINDOW": spec.sliding_window or 0,
        "SOFT_CAP": spec.soft_cap is not None,
    }


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    decodes: int,
    clean: bool,
    scales: tuple[float, float] = (1.0, 1.0),
    early: bool = False,
) -> None:
    """Copy ``key`` and ``value`` [tokens, kv_heads, head_dim] to ``slots`` [tokens]; negative slots are skipped.

    An 8-bit cache takes them divided by ``scales``. ``clean`` also zeroes the unused values of the last block of
    each row that starts at token ``decodes`` or later. ``early``: launch before the kernel ahead has ended, and
    wait inside (from Hopper on).
    """
    _, kv_heads, _, block_size, head_dim = cache.shape
    launch(
        kv_write_kernel,
        (key.shape[0],),
        key,
        value,
        cache,
        slots,
        key.shape[0],
        decodes,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        *scales,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        HEADS=triton.next_power_of_2(kv_heads),
        DIM=triton.next_power_of_2(head_dim),
        CLEAN=clean,
        SCALED=cache.element_size() == 1,
        num_warps=4,
        **early_options(early),
    )


def split(plan: AttentionPlan, spec: AttentionSpec, config: DecodeConfig) -> torch.Tensor:
    """Where each program of the decode kernel begins: made for the first of the layers that are alike."""
    key = (spec.num_kv_heads, spec.sliding_window or 0, config.block_n, config.programs)
    if key not in plan.runs:
        # The number of rows is compiled in coarse steps only: each step costs a compilation.
        rows = 64
        while rows < plan.decode_rows:
            rows *= 4
        part = max(1, _SEARCHED // rows)
        runs = torch.empty((config.programs + 1, 4), dtype=torch.int32, device=plan.batch.seq_lens.device)
        launch(
            split_kernel,
            (triton.cdiv(config.programs, part),),
            plan.batch.seq_lens,
            runs,
            plan.decode_rows,
            config.programs,
            KV_HEADS=spec.num_kv_heads,
            QUERIES=plan.queries,
            WINDOW=spec.sliding_window or 0,
            ROWS=rows,
            BLOCK_N=config.block_n,
            PART=part,
            num_warps=4,
        )
        plan.runs[key] = runs
    return plan.runs[key]


def decode(
    plan: AttentionPlan,
    spec: AttentionSpec,
    query: torch.Tensor,
    cache: torch.Tensor,
    out: torch.Tensor,
    config: DecodeConfig,
    scratch: Scratch,
    early: bool = False,
) -> None:
    """Attend for the plan's decode rows. The grid depends on nothing but the device."""
    batch = plan.batch
    dim = triton.next_power_of_2(spec.head_dim)
    used = triton.next_power_of_2(plan.queries * (spec.num_heads // spec.num_kv_heads))
    slots = 2 * config.programs * used
    partial = scratch.partial(slots * (dim + 2))
    launch(
        decode_kernel,
        (config.programs,),
        query,
        cache,
        batch.block_tables,
        batch.seq_lens,
        split(plan, spec, config),
        out,
        partial,
        partial[slots * dim :],
        scratch.counter(plan.decode_rows * spec.num_kv_heads),
        plan.decode_rows,
        spec.scale * spec.key_scale * LOG2E,
        spec.soft_cap or 1.0,
        spec.value_scale,
        query.stride(0),
        query.stride(1),
        batch.block_tables.stride(0),
        **layer_constants(spec, cache),
        QUERIES=plan.queries,
        BLOCK_M=max(16, used),
        BLOCK_N=config.block_n,
        DIM=dim,
        USED=used,
        PRECISION="ieee",
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
        **early_options(early),
    )


def prefill(
    plan: AttentionPlan,
    spec: AttentionSpec,
    query: torch.Tensor,
    cache: torch.Tensor,
    out: torch.Tensor,
    config: PrefillConfig,
) -> None:
    """Attend for the plan's other rows, on any GPU."""
    batch = plan.batch
    work = plan.work_list(config.block_m // (spec.num_heads // spec.num_kv_heads))
    launch(
        prefill_kernel,
        (spec.num_kv_heads, work.count),
        query,
        cache,
        batch.block_tables,
        batch.seq_lens,
        batch.query_starts,
        work.pairs,
        out,
        spec.scale * spec.key_scale * LOG2E,
        spec.soft_cap or 1.0,
        spec.value_scale,
        query.stride(0),
        query.stride(1),
        batch.block_tables.stride(0),
        **layer_constants(spec, cache),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        DIM=triton.next_power_of_2(spec.head_dim),
        PRECISION="ieee",
        num_warps=config.warps,
        num_stages=config.stages,
    )
