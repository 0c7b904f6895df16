"""A rehearsal of an engine's steps on the meta device, which compiles their kernels while weights are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from octavo.ahead import Compilations, compiling
from octavo.contracts.executor import StepPlan
from octavo.run.build import build_model
from octavo.run.dtypes import torch_dtype
from octavo.run.rows import Rows
from octavo.run.step import build_step

if TYPE_CHECKING:
    from octavo.assemble import Resolved
    from octavo.model.parts import Parts

_log = logging.getLogger(__name__)
_MOST_THREADS: Final = 16
_DECODES: Final = (1, 4, 24, 40, 100)  # batch sizes of which each may take other kernels, and the largest
_PROMPTS: Final = (48, 5000)
_META: Final = torch.device("meta")


@contextlib.contextmanager
def rehearsed(resolved: Resolved, parts: Parts) -> Iterator[None]:
    """Kernels are compiled while the body runs, and ready when it ends. Does nothing where a part that was chosen
    can't compile ahead."""
    compilations = None
    if _can(resolved):
        threads = min(_MOST_THREADS, max(1, resolved.context.device.cores - 1))
        compilations = rehearse(resolved, parts, ThreadPoolExecutor(threads, thread_name_prefix="octavo-compile"))
    yield
    if compilations is not None:
        compilations.wait()


def _can(resolved: Resolved) -> bool:
    ops, attention = resolved.ops, resolved.choices["attention"].record
    return (
        resolved.context.device.type == "cuda"
        and resolved.choices.get("quantization") is None
        and bool(attention.compiles_ahead)
        and all(choice.record.compiles_ahead for choice in ops)
    )


@torch.inference_mode()
def rehearse(resolved: Resolved, parts: Parts, pool: Executor) -> Compilations | None:
    """Run steps of a model of one layer on the meta device; ``None`` where that fails."""
    ctx = resolved.context
    small = replace(ctx, model=replace(ctx.model, num_layers=1))
    try:
        with compiling(pool) as compilations:
            model = build_model(replace(resolved, context=small), replace(parts, device=_META, lora=None))
            model.finalize()
            caches = [
                torch.empty(parts.attention.kv_shape(spec, 2), dtype=torch_dtype(ctx.kv_dtype), device=_META)
                for spec in model.attention_layers
            ]
            for plan in _plans(ctx.max_sequences, ctx.max_length):
                rows = Rows(len(plan.rows), ctx.max_length, ctx.block_size, _META)
                rows.known[:] = ctx.max_length  # no token is taken from the device
                step = build_step(plan, rows, ctx.block_size, _META)
                hidden = model.forward(step.token_ids, step.batch, parts.attention.plan(step.batch), caches)
                logits = model.logits(hidden.index_select(0, step.sampled_tokens))
                _draw(parts, logits)
    except Exception:  # a rehearsal that fails costs time at the first launch, nothing else
        _log.debug("kernels are not compiled ahead", exc_info=True)
        return None
    return compilations


def _plans(max_sequences: int, max_length: int) -> Iterator[StepPlan]:
    for size in dict.fromkeys(min(size, max_sequences) for size in (*_DECODES, max_sequences)):
        yield _plan([1] * size)
    for tokens in dict.fromkeys(min(tokens, max_length - 1) for tokens in _PROMPTS):
        yield _plan([tokens])


def _plan(counts: list[int]) -> StepPlan:
    rows = list(range(len(counts)))
    return StepPlan(0, [], [], [], rows, [0] * len(rows), counts, [True] * len(rows))


def _draw(parts: Parts, logits: torch.Tensor) -> None:
    rows, vocab_size = logits.shape
    words = torch.empty(vocab_size, dtype=torch.int32, device=_META)
    keys = torch.empty((rows, 2), dtype=torch.int32, device=_META)
    parts.ops.draw(logits, torch.empty((rows, 1), device=_META), words, keys)
