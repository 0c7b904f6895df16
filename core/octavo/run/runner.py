"""One rank's runner: a plan in, a step's tokens out.

Charter. This file turns a plan into one forward pass and one sampling call, and nothing else. It knows no feature
by name: sampling options live in ``run/sampler``, request life in ``scheduling``, layouts in attention backends,
weight formats in linear methods. Nothing here loops over sequences or tokens, and nothing waits for the device;
waiting happens in ``Pending.result``. Whoever adds an ``if`` for one feature is in the wrong room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import AttentionBackend
from octavo.contracts.executor import RowLogprobs, StepPlan, StepResult
from octavo.contracts.model import CausalLM
from octavo.run.rows import Rows
from octavo.run.sampler import Logprobs, Sampled, Sampler
from octavo.run.step import StepInputs, build_step

_PROMPT_LOGPROB_ROWS = 512
"""Positions whose logits exist at once while prompt log-probabilities are computed."""


PromptLogprobs = dict[int, list[Logprobs]]
"""By index into the plan's rows, in pieces."""


class Runner:
    """Holds the model, the caches and the rows of one rank."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        caches: Sequence[Tensor],
        rows: Rows,
        sampler: Sampler,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._model, self._attention, self._caches = model, attention, caches
        self._rows, self._sampler = rows, sampler
        self._block_size, self._device = block_size, device

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Pending:
        """Start the step. On a CPU it has run when this returns."""
        self._update_rows(plan)
        step = build_step(plan, self._rows, self._block_size, self._device)
        attention_plan = self._attention.plan(step.batch)
        hidden = self._model.forward(step.token_ids, step.batch, attention_plan, self._caches)
        prompt_logprobs = self._prompt_logprobs(plan, hidden) if self._rows.prompt_logprobs else {}
        sampled = self._sample(step, hidden) if len(step.sampled) else None
        return Pending(plan, step, sampled, prompt_logprobs, self._forget)

    def _update_rows(self, plan: StepPlan) -> None:
        self._rows.apply(plan)
        for row in plan.ends:
            self._sampler.release(row)
        for start in plan.starts:
            self._sampler.admit(start)

    def _sample(self, step: StepInputs, hidden: Tensor) -> Sampled:
        logits = self._model.logits(hidden.index_select(0, step.sampled_tokens))
        sampled = self._sampler.sample(logits, step.sampled_rows, step.sampled_positions)
        rows = torch.from_numpy(step.sampled_rows).to(self._device, non_blocking=True)
        self._rows.last_tokens.index_copy_(0, rows, sampled.tokens)
        return sampled

    def _prompt_logprobs(self, plan: StepPlan, hidden: Tensor) -> PromptLogprobs:
        """For the rows that asked: log-probabilities of the prompt tokens after each position of this chunk."""
        found: PromptLogprobs = {}
        start = 0
        for index, (row, first, count) in enumerate(zip(plan.rows, plan.positions, plan.counts, strict=True)):
            wanted = self._rows.prompt_logprobs.get(row)
            last = min(first + count, int(self._rows.prompt_lengths[row]) - 1)
            if wanted is not None and last > first:
                found[index] = self._judge(hidden[start : start + last - first], row, first, wanted)
            start += count
        return found

    def _judge(self, hidden: Tensor, row: int, first: int, top: int) -> list[Logprobs]:
        targets = torch.from_numpy(self._rows.tokens[row, first + 1 : first + 1 + hidden.shape[0]])
        parts = [slice(at, at + _PROMPT_LOGPROB_ROWS) for at in range(0, hidden.shape[0], _PROMPT_LOGPROB_ROWS)]
        return [
            self._sampler.prompt_logprobs(self._model.logits(hidden[part]), targets[part].to(self._device), top)
            for part in parts
        ]

    @torch.inference_mode()
    def _forget(self, blocks: np.ndarray) -> None:
        """Clear blocks that may hold NaN: masked scores would carry it into the block's next user."""
        index = torch.from_numpy(blocks.astype(np.int64)).to(self._device)
        for cache in self._caches:
            cache.index_fill_(1, index, 0)


class Pending:
    """A launched step. ``result`` waits for its tokens."""

    def __init__(
        self,
        plan: StepPlan,
        step: StepInputs,
        sampled: Sampled | None,
        prompt_logprobs: PromptLogprobs,
        forget: Callable[[np.ndarray], None],
    ) -> None:
        self._plan, self._step, self._sampled = plan, step, sampled
        self._prompt_logprobs, self._forget = prompt_logprobs, forget

    def result(self) -> StepResult:
        tokens = np.full(len(self._plan.rows), -1, np.int64)
        logprobs: dict[int, RowLogprobs] = {}
        failed: dict[int, str] = {}
        if self._sampled is not None:
            index = self._step.sampled
            tokens[index] = self._sampled.tokens.cpu().numpy()
            if self._sampled.logprobs is not None:
                logprobs = {int(index[at]): one for at, one in self._sampled.logprobs.to_host().items()}
            failed = self._failures(index[~self._sampled.finite.cpu().numpy()])
            failed |= {int(index[at]): reason for at, reason in self._sampled.failed.items()}
        prompts = {
            at: [one for piece in pieces for one in piece.to_host()] for at, pieces in self._prompt_logprobs.items()
        }
        return StepResult(self._plan.number, tokens, logprobs, prompts, failed)

    def _failures(self, broken: np.ndarray) -> dict[int, str]:
        for index in broken:
            self._forget(np.unique(self._step.batch.block_tables_host[index]))
        return {int(index): "The model's logits are not finite (NaN or infinity)." for index in broken}
