"""The memory plan: what weights, KV blocks and activations take, and what fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.errors import ConfigError
from octavo.run.dtypes import torch_dtype

if TYPE_CHECKING:
    from octavo.assemble import Resolved
    from octavo.contracts.attention import AttentionBackend
    from octavo.contracts.model import CausalLM

_GIB = 2**30
_MIN_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class DraftMemory:
    """What a proposer's layers take beside the target's, in bytes."""

    weights: int = 0
    per_block: int = 0
    activations: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes in bytes. ``lines`` says the same in words."""

    weights_bytes: int
    kv_bytes_per_block: int
    num_blocks: int
    kv_bytes: int
    activation_bytes: int
    sequences_at_max_length: float
    lines: tuple[str, ...]


def plan_memory(resolved: Resolved) -> MemoryPlan:
    """Plan without touching the device: the model is built of tensors that have a shape and no storage."""
    from octavo.run.build import build_model, build_parts
    from octavo.run.draft_kit import build_device_proposer

    meta = torch.device("meta")
    parts = build_parts(resolved, meta)
    model = build_model(resolved, parts)
    weights = weight_bytes(model)
    weights += parts.lora.reserved_bytes + parts.lora.later_bytes if parts.lora else 0
    built = build_device_proposer(resolved, model, meta)
    drafts = [body.memory for body in built[1]] if built else []
    weights += sum(draft.weights for draft in drafts)
    return divide_memory(resolved, model, parts.attention, weights, drafts=drafts)


def weight_bytes(model: CausalLM) -> int:
    """Bytes that a model's parameters take once they are loaded."""
    return int(sum(slot.target.numel() * slot.target.element_size() * slot.kept for slot in model.slots()))


def divide_memory(
    resolved: Resolved,
    model: CausalLM,
    attention: AttentionBackend,
    weights: int,
    peak: int | None = None,
    drafts: Sequence[DraftMemory] = (),
) -> MemoryPlan:
    """How many blocks fit beside ``weights`` bytes of weights; raises :class:`ConfigError` when too few do.

    ``peak`` is what a step's activations were measured to take; without, it is estimated. ``weights`` are those of
    ``drafts`` as well; their blocks are as many as the target's.
    """
    ctx, cache = resolved.context, resolved.config.cache
    block = block_bytes(resolved, model, attention) + sum(draft.per_block for draft in drafts)
    activations = (peak or activation_bytes(resolved)) + _graph_bytes(resolved)
    activations += sum(draft.activations for draft in drafts)
    useful = ctx.max_sequences * -(-ctx.max_length // ctx.block_size) + 1
    if cache.blocks is not None:
        blocks, source = cache.blocks, "cache.blocks"
    elif ctx.device.type == "cpu":
        budget = min(int(cache.cpu_memory_gib * _GIB), (ctx.device.free_memory - weights) // 2)
        blocks, source = min(budget // block, useful), "cache.cpu_memory_gib"
    else:
        budget = int(ctx.device.total_memory * cache.memory)
        budget -= ctx.device.total_memory - ctx.device.free_memory + weights + activations
        blocks, source = min(budget // block, useful), "cache.memory"
    if blocks < _MIN_BLOCKS:
        raise ConfigError(
            f"no room for KV blocks: weights take {_gib(weights)}, activations {_gib(activations)}, one block "
            f"{block:,} bytes, and {_gib(ctx.device.free_memory)} of the {ctx.device.name} is free. "
            f"Raise {source}, or lower scheduler.max_batch_tokens or model.max_length, or use a quantised model.",
            source,
        )
    return _plan(resolved, weights, block, int(blocks), activations, source)


def block_bytes(resolved: Resolved, model: CausalLM, attention: AttentionBackend) -> int:
    """Bytes that one block takes in all layers."""
    size = torch_dtype(resolved.context.kv_dtype).itemsize
    return sum(torch.Size(attention.kv_shape(spec, 1)).numel() * size for spec in model.attention_layers)


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One layer's cache, zeros. On a CPU the system gives the memory page by page as blocks come into use."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)


def activation_bytes(resolved: Resolved) -> int:
    """A step's largest tensors: hidden states, the MLP's, and the sampled rows' logits with two copies."""
    ctx = resolved.context
    width = getattr(torch, ctx.dtype).itemsize
    inner = int(ctx.model.config.get("intermediate_size", 4 * ctx.model.hidden_size))
    tokens = ctx.max_batch_tokens * (4 * ctx.model.hidden_size + 3 * inner) * width
    return int(tokens + 3 * 4 * ctx.max_sequences * ctx.model.vocab_size)


def _plan(resolved: Resolved, weights: int, block: int, blocks: int, activations: int, source: str) -> MemoryPlan:
    ctx = resolved.context
    room = (blocks - 1) * ctx.block_size
    fit = room / ctx.max_length
    lines = (
        f"weights      {_gib(weights):>12}",
        f"KV cache     {_gib(blocks * block):>12}  {blocks:,} blocks of {ctx.block_size} tokens ({source}): "
        f"{room:,} tokens",
        f"activations  {_gib(activations):>12}  at most, for a step of {ctx.max_batch_tokens:,} tokens",
        f"fits         {fit:>12.1f}  sequences of {ctx.max_length:,} tokens"
        f" ({int(room / 1024):,} of 1,024 tokens), {ctx.max_sequences} at once",
    )
    return MemoryPlan(weights, block, blocks, blocks * block, activations, fit, lines)


def _graph_bytes(resolved: Resolved) -> int:
    """What captured decode steps keep: the largest one's logits and hidden states, in two types."""
    ctx = resolved.context
    if ctx.device.type == "cpu":
        return 0
    positions = 8 * min(ctx.max_sequences, 1024)
    if resolved.speculates:  # each shape that verifies keeps its logits, float32
        from octavo.run.graphs import LENGTHS, verify_shapes

        shapes = verify_shapes(ctx.max_sequences, LENGTHS[-1], LENGTHS[-1] + 1)
        positions += 4 * sum(rows * queries for rows, queries in shapes)
    return positions * (ctx.model.vocab_size + 8 * ctx.model.hidden_size)


def _gib(number: int) -> str:
    return f"{number / _GIB:.2f} GiB"
