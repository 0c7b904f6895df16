"""The attention backend: plans a step and runs its kernels, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.early import can_launch_early
from octavo.records import Context
from octavo_attention.launch import Scratch, decode, decode_config, prefill, prefill_config, split, write
from octavo_attention.options import TritonOptions
from octavo_attention.plan import MAX_QUERIES, AttentionPlan, make_plan

if TYPE_CHECKING:
    from octavo_attention.launch_hopper import HopperPrefill

MAX_DECODE_TILE = 64  # query tokens times heads of a group in the decode kernel


class TritonAttention:
    """Implements :class:`octavo.contracts.attention.AttentionBackend`.

    ``processors`` is the number of multiprocessors that work is spread over; ``hopper`` says whether the Hopper
    prefill kernel may be used, ``early`` whether kernels may start before those ahead have ended. A step whose rows
    all decode depends on nothing that the host knows but the number of rows, so it may be captured in a CUDA graph,
    after one run outside of it.
    """

    block_axis = 0

    def __init__(
        self,
        *,
        block_size: int,
        group: int,
        device: torch.device,
        processors: int,
        hopper: bool,
        early: bool = False,
    ) -> None:
        self._block_size = block_size
        self.graph_queries = self._max_queries = min(MAX_QUERIES, MAX_DECODE_TILE // group)
        self._processors = processors
        self._scratch = Scratch(device)
        self._hopper = _hopper_prefill(processors) if hopper else None
        self._early = early

    def kv_shape(self, spec: AttentionSpec, num_blocks: int) -> tuple[int, ...]:
        """[blocks, kv_heads, keys and values, block_size, head_dim]."""
        return (num_blocks, spec.num_kv_heads, 2, self._block_size, spec.head_dim)

    def plan(self, batch: StepBatch) -> AttentionPlan:
        """Split the batch's rows into decodes and prefills."""
        return make_plan(batch, self._max_queries)

    def forward(
        self,
        plan: AttentionPlan,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """Write keys and values, then attend: one launch for the write, one for each kind of row present."""
        query, key, value = _packed(query), _packed(key), _packed(value)
        prefills = plan.decode_rows < plan.batch.num_rows
        hopper = self._hopper if cache.dtype == query.dtype else None
        out = torch.empty(query.shape[0], spec.num_heads * spec.head_dim, dtype=query.dtype, device=query.device)
        dim = triton.next_power_of_2(spec.head_dim)
        config = decode_config(dim, cache.element_size(), self._processors, plan.decode_rows)
        if plan.decode_rows:
            split(plan, spec, config)  # before the write, which is to be the decode kernel's direct forerunner
        clean = prefills and hopper is not None
        scales = (spec.key_scale, spec.value_scale)
        write(key, value, cache, plan.batch.slots, plan.decode_tokens, clean, scales, self._early)
        if plan.decode_rows:
            decode(plan, spec, query, cache, out, config, self._scratch, self._early)
        if prefills and hopper is not None:
            hopper.prefill(plan, spec, query, cache, out)
        elif prefills:
            prefill(plan, spec, query, cache, out, prefill_config(dim, query.element_size()))
        return out


def _hopper_prefill(processors: int) -> HopperPrefill:
    from octavo_attention.launch_hopper import HopperPrefill

    return HopperPrefill(processors)


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its last axis contiguous; tokens and heads may have any stride."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def build(ctx: Context, options: TritonOptions) -> TritonAttention:
    """Make the backend for the context's device."""
    device = torch.device(ctx.device.torch_name)
    on_gpu = device.type == "cuda"
    hopper = ctx.device.capability == (9, 0) and ctx.dtype != "float32" and ctx.block_size in (16, 32, 64, 128, 256)
    return TritonAttention(
        block_size=ctx.block_size,
        group=ctx.model.num_heads // ctx.model.num_kv_heads,
        device=device,
        processors=torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else ctx.device.cores,
        hopper=hopper and options.prefill != "portable",
        early=can_launch_early(ctx.device.capability),
    )
