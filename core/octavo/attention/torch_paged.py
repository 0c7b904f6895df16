"""Paged attention in plain torch: the reference for every other backend, and the default on a CPU.

Layout of a layer's cache: [2, blocks, block_size, kv_heads * head_dim], keys then values, so that writing a token
copies one row and reading a sequence copies whole blocks.

Decode rows are gathered into a few groups of similar length and attended a group at a time, without a loop over
sequences. Rows that compute several tokens are attended one by one: straight from this step's keys and values
where nothing is cached before them, else from gathered blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.records import Context

_PADDING_WORTH_A_GROUP = 1.3
"""Split a group of decode rows once padding makes it read more than this many times what it needs."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows that are attended together, padded to the longest."""

    rows: Tensor | None  # int64 [n] rows of the batch; None: all decode rows, in order
    blocks: Tensor  # int64 [n * width]
    lengths: Tensor  # int64 [n]
    count: int
    padded: int  # width * block_size
    longest: int
    mask: Tensor | None  # float [n, 1, 1, padded]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row that computes several tokens, after ``context`` cached ones."""

    start: int
    stop: int
    context: int
    blocks: Tensor | None  # int64 [width], where there is context


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's index tensors."""

    slots: Tensor
    decodes: int
    groups: tuple[DecodeGroup, ...]
    prompts: tuple[PromptRow, ...]


class TorchAttention:
    """An :class:`octavo.contracts.attention.AttentionBackend`."""

    block_axis = 1

    def __init__(self, ctx: Context) -> None:
        self._block_size = ctx.block_size
        self._device = torch.device(ctx.device.torch_name)
        self._dtype = getattr(torch, ctx.dtype)

    def kv_shape(self, spec: AttentionSpec, num_blocks: int) -> tuple[int, ...]:
        return (2, num_blocks, self._block_size, spec.num_kv_heads * spec.head_dim)

    def plan(self, batch: StepBatch) -> Plan:
        starts = np.concatenate(([0], np.cumsum(batch.query_lens_host)))
        prompts = tuple(
            self._prompt(batch, row, int(starts[row]), int(starts[row + 1]))
            for row in range(batch.decodes, batch.num_rows)
        )
        groups = tuple(self._group(batch, rows) for rows in _similar(batch, self._block_size))
        return Plan(batch.slots, batch.decodes, groups, prompts)

    def forward(
        self, plan: Plan, spec: AttentionSpec, query: Tensor, key: Tensor, value: Tensor, cache: Tensor
    ) -> Tensor:
        width = spec.num_kv_heads * spec.head_dim
        flat = cache.view(2, -1, width)
        stored_keys = _stored(key.reshape(-1, width), cache, spec.key_scale)
        stored_values = _stored(value.reshape(-1, width), cache, spec.value_scale)
        _write(flat[0], plan.slots, stored_keys)
        _write(flat[1], plan.slots, stored_values)
        if cache.element_size() == 1 and plan.prompts:  # a prompt cut into chunks must see the same as a whole one
            key = _read(stored_keys, spec.key_scale, query).view(key.shape)
            value = _read(stored_values, spec.value_scale, query).view(value.shape)
        out = torch.empty(query.shape[0], spec.num_heads * spec.head_dim, dtype=query.dtype, device=query.device)
        for group in plan.groups:
            self._decode(plan, group, spec, query, cache, out)
        for row in plan.prompts:
            part = slice(row.start, row.stop)
            out[part] = self._attend_prompt(row, spec, query[part], key[part], value[part], cache)
        return out

    def _prompt(self, batch: StepBatch, row: int, start: int, stop: int) -> PromptRow:
        length = int(batch.seq_lens_host[row])
        context = length - (stop - start)
        if context == 0:
            return PromptRow(start, stop, 0, None)
        width = -(-length // self._block_size)
        return PromptRow(start, stop, context, self._index(batch.block_tables_host[row, :width]))

    def _group(self, batch: StepBatch, rows: np.ndarray) -> DecodeGroup:
        lengths = batch.seq_lens_host[rows].astype(np.int64)
        longest = int(lengths.max())
        width = -(-longest // self._block_size)
        padded = width * self._block_size
        everyone = len(rows) == batch.decodes
        on_device = torch.from_numpy(lengths).to(self._device)
        mask = None
        if int(lengths.min()) < padded:
            late = torch.arange(padded, device=self._device) >= on_device.unsqueeze(1)
            mask = torch.zeros(late.shape, dtype=self._dtype, device=self._device)
            mask = mask.masked_fill_(late, float("-inf")).view(len(rows), 1, 1, padded)
        return DecodeGroup(
            rows=None if everyone else self._index(rows),
            blocks=self._index(batch.block_tables_host[rows, :width].reshape(-1)),
            lengths=on_device,
            count=len(rows),
            padded=padded,
            longest=longest,
            mask=mask,
        )

    def _decode(
        self, plan: Plan, group: DecodeGroup, spec: AttentionSpec, query: Tensor, cache: Tensor, out: Tensor
    ) -> None:
        chosen = query[: plan.decodes] if group.rows is None else query.index_select(0, group.rows)
        shape = (group.count, group.padded, spec.num_kv_heads, spec.head_dim)
        keys = _read(cache[0].index_select(0, group.blocks), spec.key_scale, query).view(shape).transpose(1, 2)
        values = _read(cache[1].index_select(0, group.blocks), spec.value_scale, query).view(shape).transpose(1, 2)
        mask = group.mask
        if spec.sliding_window is not None and group.longest > spec.sliding_window:
            mask = _decode_window(group, spec.sliding_window, query.dtype)
        answer = _attend(chosen.unsqueeze(2), keys, values, mask, spec).reshape(group.count, -1)
        if group.rows is None:
            out[: plan.decodes] = answer
        else:
            out.index_copy_(0, group.rows, answer)

    def _attend_prompt(
        self, row: PromptRow, spec: AttentionSpec, query: Tensor, key: Tensor, value: Tensor, cache: Tensor
    ) -> Tensor:
        count = query.shape[0]
        queries = query.transpose(0, 1).unsqueeze(0)
        length = row.context + count
        windowed = spec.sliding_window is not None and length > spec.sliding_window
        if row.blocks is None:
            keys, values = key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
        else:
            shape = (-1, spec.num_kv_heads, spec.head_dim)
            keys = _read(cache[0].index_select(0, row.blocks), spec.key_scale, query).view(shape)
            values = _read(cache[1].index_select(0, row.blocks), spec.value_scale, query).view(shape)
            keys, values = (each[:length].transpose(0, 1).unsqueeze(0) for each in (keys, values))
        causal = row.context == 0 and not windowed and spec.soft_cap is None
        mask = None if causal else _causal_mask(row.context, count, spec.sliding_window, query)
        answer = _attend(queries, keys, values, mask, spec, causal=causal)
        return answer.squeeze(0).transpose(0, 1).reshape(count, -1)

    def _index(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)


def _stored(new: Tensor, cache: Tensor, scale: float) -> Tensor:
    """New rows in the cache's type. An 8-bit one takes them divided by their scale, cut at its largest number."""
    if cache.element_size() > 1:
        return new.to(cache.dtype)
    largest = torch.finfo(cache.dtype).max
    return (new.float() / scale).clamp_(-largest, largest).to(cache.dtype)


def _write(cache: Tensor, slots: Tensor, new: Tensor) -> None:
    if cache.element_size() == 1:  # torch copies rows of bytes, not of floats that small
        cache, new = cache.view(torch.uint8), new.view(torch.uint8)
    cache.index_copy_(0, slots, new)


def _read(stored: Tensor, scale: float, query: Tensor) -> Tensor:
    """Cached rows in the query's type."""
    return stored.to(query.dtype) if stored.element_size() > 1 else (stored.float() * scale).to(query.dtype)


def _similar(batch: StepBatch, block_size: int) -> list[np.ndarray]:
    """Decode rows in groups of similar length: sorted, cut where padding costs more than another group."""
    if batch.decodes == 0:
        return []
    lengths = batch.seq_lens_host[: batch.decodes]
    widths = -(-lengths // block_size)
    if widths.max() * len(widths) <= _PADDING_WORTH_A_GROUP * widths.sum():
        return [np.arange(batch.decodes)]
    order = np.argsort(-widths, kind="stable")
    groups, first = [], 0
    while first < len(order):
        longest = widths[order[first]]
        stop = first + int(np.sum(widths[order[first:]] * _PADDING_WORTH_A_GROUP * 1.2 >= longest))
        groups.append(np.sort(order[first:stop]))
        first = stop
    return groups


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, spec: AttentionSpec, causal: bool = False
) -> Tensor:
    """[batch, heads, n, dim] over [batch, kv_heads, m, dim]; ``mask`` is added to the scores."""
    if spec.soft_cap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=spec.scale, enable_gqa=True
        )
    groups = spec.num_heads // spec.num_kv_heads
    scores = query.float() @ key.repeat_interleave(groups, 1).float().transpose(-1, -2) * spec.scale
    scores = torch.tanh(scores / spec.soft_cap) * spec.soft_cap
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ value.repeat_interleave(groups, 1).float()).to(query.dtype)


def _decode_window(group: DecodeGroup, window: int, dtype: torch.dtype) -> Tensor:
    positions = torch.arange(group.padded, device=group.lengths.device)
    length = group.lengths.unsqueeze(1)
    hidden = (positions >= length) | (positions < length - window)
    return (
        torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        .masked_fill_(hidden, float("-inf"))
        .view(group.count, 1, 1, group.padded)
    )


def _causal_mask(context: int, count: int, window: int | None, query: Tensor) -> Tensor:
    """[count, context + count]: a token sees itself, what came before it, and no further back than the window."""
    own = torch.arange(context, context + count, device=query.device).unsqueeze(1)
    seen = torch.arange(context + count, device=query.device).unsqueeze(0)
    hidden = seen > own
    if window is not None:
        hidden |= seen <= own - window
    return torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
