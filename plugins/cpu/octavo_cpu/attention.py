"""Paged attention through the native kernel: decodes and prompts straight off the cache, in one call a layer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.records import Context
from octavo_cpu.library import Shape, Step, load


@dataclass(frozen=True, slots=True)
class Plan:
    """A step as the kernel reads it, and the arrays that it points to."""

    step: Step
    address: int
    kept: tuple[object, ...]


class NativeAttention:
    """An :class:`octavo.contracts.attention.AttentionBackend`.

    Layout of a layer's cache: [2, blocks, kv_heads, block_size, head_dim] float32, keys then values.
    """

    block_axis = 1

    def __init__(self, ctx: Context, threads: int) -> None:
        self._block_size, self._threads = ctx.block_size, threads
        self._attend = load().octavo_attention
        self._shapes: dict[int, Shape] = {}

    def kv_shape(self, spec: AttentionSpec, num_blocks: int) -> tuple[int, ...]:
        return (2, num_blocks, spec.num_kv_heads, self._block_size, spec.head_dim)

    def plan(self, batch: StepBatch) -> Plan:
        starts = np.zeros(batch.num_rows + 1, np.int64)
        np.cumsum(batch.query_lens_host, out=starts[1:])
        lengths = np.ascontiguousarray(batch.seq_lens_host, np.int64)
        tables = np.ascontiguousarray(batch.block_tables_host, np.int32)
        step = Step(
            batch.num_tokens,
            batch.num_rows,
            tables.shape[1],
            batch.slots.data_ptr(),
            tables.ctypes.data,
            lengths.ctypes.data,
            starts.ctypes.data,
        )
        return Plan(step, ctypes.addressof(step), (batch.slots, tables, lengths, starts))

    def forward(
        self, plan: Plan, spec: AttentionSpec, query: Tensor, key: Tensor, value: Tensor, cache: Tensor
    ) -> Tensor:
        out = torch.empty(query.shape[0], spec.num_heads * spec.head_dim)
        shape = self._shapes.get(spec.layer) or self._shape(spec)
        self._attend(
            plan.address,
            ctypes.addressof(shape),
            query.data_ptr(),
            query.stride(0),
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            cache.data_ptr(),
            cache.shape[1],
            out.data_ptr(),
            self._threads,
        )
        return out

    def _shape(self, spec: AttentionSpec) -> Shape:
        sizes = spec.num_heads, spec.num_kv_heads, spec.head_dim, self._block_size, spec.sliding_window or 0
        shape = Shape(*sizes, spec.scale, spec.soft_cap or 0.0)
        self._shapes[spec.layer] = shape
        return shape
