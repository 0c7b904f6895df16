"""Measuring what a step takes, by running the largest one on a cache of two blocks."""

from __future__ import annotations

import numpy as np
import torch

from octavo.contracts.attention import AttentionBackend
from octavo.contracts.executor import StepPlan
from octavo.contracts.model import CausalLM
from octavo.records import Context
from octavo.run.rows import Rows
from octavo.run.step import build_step


@torch.inference_mode()
def measure_peak(
    model: CausalLM, attention: AttentionBackend, ctx: Context, kv_dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes that the activations and logits of a full step take at their highest, on a GPU.

    Counts only this process's allocations, so that another process on the same GPU does not disturb it.
    """
    caches = [
        torch.zeros(attention.kv_shape(spec, 2), dtype=kv_dtype, device=device) for spec in model.attention_layers
    ]
    plan = _largest_step(ctx)
    rows = Rows(len(plan.rows), ctx.max_length, ctx.block_size, device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = build_step(plan, rows, ctx.block_size, device)
    hidden = model.forward(step.token_ids, step.batch, attention.plan(step.batch), caches)
    repeated = torch.from_numpy(np.zeros(ctx.max_sequences, np.int64)).to(device)
    logits = model.logits(hidden.index_select(0, repeated))
    logits.max(dim=1)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del caches, rows, step, hidden, logits
    torch.cuda.empty_cache()
    return int(peak)


def _largest_step(ctx: Context) -> StepPlan:
    """Prompts as long as allowed until the token budget is spent. Every block is the padding block."""
    longest = min(ctx.max_length - 1, ctx.max_batch_tokens)
    counts = [longest] * (ctx.max_batch_tokens // longest)
    if rest := ctx.max_batch_tokens - sum(counts):
        counts.append(rest)
    counts = counts[: ctx.max_sequences]
    rows = list(range(len(counts)))
    return StepPlan(0, [], [], [], rows, [0] * len(rows), counts, [True] * len(rows))
