"""Launches the Hopper prefill kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo.ahead import launch
from octavo.contracts.attention import AttentionSpec
from octavo_attention.kernels.prefill_hopper import prefill_hopper_kernel
from octavo_attention.launch import LOG2E, layer_constants
from octavo_attention.plan import AttentionPlan

BLOCK_M = 128  # two warpgroups of 64 rows


_LONG = 4096


@dataclass(frozen=True, slots=True)
class HopperConfig:
    """``block_n`` keys a tile, ``stages`` tiles of keys and of values in shared memory."""

    block_n: int
    stages: int


def hopper_config(dim: int, longest: int) -> HopperConfig:
    """What fits 227 KiB of shared memory and the registers of two warpgroups, for rows of up to ``longest`` keys.

    Large tiles win on long rows (650 against 595 TFLOP/s at 16k, on an H200), small ones, which waste less on the
    diagonal, on short rows (285 against 240 at 512).
    """
    if dim > 128:
        return HopperConfig(block_n=64, stages=2)
    return HopperConfig(block_n=128, stages=2) if longest > _LONG else HopperConfig(block_n=64, stages=4)


@dataclass(slots=True)
class HopperPrefill:
    """Launches on ``processors`` multiprocessors, one program each.

    ``descriptors`` tell the copy engine where the caches lie; making one costs the host more than looking it up.
    """

    processors: int
    descriptors: dict[tuple[int, ...], Any] = field(default_factory=dict)

    def descriptor(self, cache: torch.Tensor, page: int) -> Any:
        """The cache as rows [rows, head_dim], fetched ``page`` rows at once, columns padded with zeros."""
        key = (cache.data_ptr(), *cache.shape, page)
        if key not in self.descriptors:
            rows = cache.view(-1, cache.shape[-1])
            layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
            block = [page, triton.next_power_of_2(cache.shape[-1])]
            self.descriptors[key] = TensorDescriptor.from_tensor(rows, block, layout)
        return self.descriptors[key]

    def prefill(
        self,
        plan: AttentionPlan,
        spec: AttentionSpec,
        query: torch.Tensor,
        cache: torch.Tensor,
        out: torch.Tensor,
        config: HopperConfig | None = None,
    ) -> None:
        """Attend for the plan's prefill rows. Values past a row's end in its last block must be finite."""
        batch = plan.batch
        longest = int(batch.seq_lens_host.max())
        config = config or hopper_config(triton.next_power_of_2(spec.head_dim), longest)
        work = plan.work_list(BLOCK_M // (spec.num_heads // spec.num_kv_heads))
        items = work.count * spec.num_kv_heads
        launch(
            prefill_hopper_kernel,
            (min(self.processors, items),),
            query,
            self.descriptor(cache, min(cache.shape[3], config.block_n)),
            batch.block_tables,
            batch.seq_lens,
            batch.query_starts,
            work.pairs,
            out,
            items,
            spec.scale * LOG2E,
            spec.soft_cap or 1.0,
            query.stride(0),
            query.stride(1),
            batch.block_tables.stride(0),
            **layer_constants(spec, cache),
            BLOCK_N=config.block_n,
            STAGES=config.stages,
            num_warps=4,
            maxnreg=168,
        )
