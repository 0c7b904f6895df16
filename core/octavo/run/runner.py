"""One rank's runner: a plan in, a step's tokens out.

Charter. This file turns a plan into one forward pass and one sampling call, and nothing else. It knows no feature
by name: sampling options live in ``run/sampler``, request life in ``scheduling``, layouts in attention backends,
weight formats in linear methods. Nothing here loops over sequences or tokens, and nothing waits for the device;
waiting happens in ``Pending.result``. Whoever adds an ``if`` for one feature is in the wrong room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.attention import AttentionBackend
from octavo.contracts.executor import Masks, RowLogprobs, StepPlan, StepResult
from octavo.contracts.model import CausalLM
from octavo.run.adapters import NoAdapters
from octavo.run.graphs import DecodeGraphs
from octavo.run.guesser import NoGuesser, Sampling
from octavo.run.pooling import Pooled, Pooler
from octavo.run.prompt_graphs import PromptGraphs
from octavo.run.rows import Rows
from octavo.run.sampler import Logprobs, Sampled, Sampler
from octavo.run.step import Samples, StepInputs, build_step
from octavo.run.taps import forward_tapped
from octavo.run.verify import gather_results

_NOTHING_POSSIBLE = (
    "The model's logits are not finite (NaN or infinity), or the request's own limits (allowed tokens, bad words, "
    "bias, grammar) bar every token."
)
_PROMPT_LOGPROB_ROWS = 512
"""Positions whose logits exist at once while prompt log-probabilities are computed."""


PromptLogprobs = dict[int, list[Logprobs]]
"""By index into the plan's rows, in pieces."""


class Runner:
    """Holds the model, the caches and the rows of one rank. Steps that one of ``graphs`` covers are replayed."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        caches: Sequence[Tensor],
        rows: Rows,
        sampler: Sampler,
        block_size: int,
        device: torch.device,
        graphs: Sequence[DecodeGraphs | PromptGraphs] = (),
        adapters: NoAdapters | None = None,
        guesser: NoGuesser | None = None,
    ) -> None:
        self._model, self._attention, self._caches = model, attention, caches
        self._rows, self._sampler, self._graphs = rows, sampler, graphs
        self._block_size, self._device = block_size, device
        self._adapters = NoAdapters() if adapters is None else adapters
        self._guesser = NoGuesser() if guesser is None else guesser
        self._pooler = Pooler(rows.max_rows, device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Pending:
        """Start the step. On a CPU it has run when this returns."""
        self._update_rows(plan)
        plan = self._guesser.begin(plan, self._sampler.reads_drafts)
        graphs = next((graphs for graphs in self._graphs if graphs.covers(plan)), None)
        if graphs is not None and not self._rows.prompt_logprobs:
            logits: Tensor | None
            step, hidden, taps, logits = graphs.run(plan)
            prompt_logprobs: PromptLogprobs = {}
            pooled = None
        else:
            step = build_step(plan, self._rows, self._block_size, self._device)
            hidden, taps = self._forward(plan, step)
            prompt_logprobs = self._prompt_logprobs(plan, hidden) if self._rows.prompt_logprobs else {}
            pooled = self._pooler.collect(plan, hidden)
            chosen = hidden.index_select(0, step.sampled_tokens)
            self._adapters.begin_logits(step.samples.rows)
            logits = self._model.logits(chosen) if len(chosen) else None
            self._adapters.rest()
        pending = Pending(plan, self._rows, prompt_logprobs, pooled, self._forget)
        pending.sampling = partial(self._finish, plan, step, hidden, taps, logits)
        if not plan.masked:
            pending.sample(None)
        return pending

    def _forward(self, plan: StepPlan, step: StepInputs) -> tuple[Tensor, Sequence[Tensor]]:
        """Final hidden states [tokens, hidden_size], and those that the guesser taps."""
        attention_plan = self._attention.plan(step.batch)
        self._adapters.begin(plan)
        return forward_tapped(
            self._model, step.token_ids, step.batch, attention_plan, self._caches, self._guesser.tap_layers
        )

    @torch.inference_mode()
    def _finish(
        self,
        plan: StepPlan,
        step: StepInputs,
        hidden: Tensor,
        taps: Sequence[Tensor],
        logits: Tensor | None,
        masks: Masks | None,
    ) -> tuple[InFlight | None, str]:
        """Sample, and let the guesser follow: the tokens on their way, and why guessing failed, if it did."""
        sampled = sampling = None
        if logits is not None:
            sampled, sampling = self._sample(logits, step.samples, masks)
        self._guesser.follow(plan, step, hidden, taps, sampling)
        return sampled, self._guesser.failed

    def _update_rows(self, plan: StepPlan) -> None:
        self._rows.apply(plan)
        self._adapters.apply(plan)
        self._pooler.apply(plan)
        for row in plan.ends:
            self._sampler.release(row)
        for start in plan.starts:
            self._sampler.admit(start)

    def _sample(self, logits: Tensor, samples: Samples, masks: Masks | None) -> tuple[InFlight, Sampling]:
        if masks is not None:
            self._sampler.mask(logits, samples.index, masks)
        sampled = self._sampler.sample(logits, samples.rows, samples.positions, samples.drafts)
        rows, tokens, last = samples.device_rows, sampled.tokens, None
        if samples.drafts is not None and sampled.kept is not None:
            last = samples.drafts.last(sampled.kept)
            rows, tokens = rows[last], tokens[last]
        self._rows.last_tokens.index_copy_(0, rows, tokens)
        return InFlight.send(sampled, samples), Sampling(rows, sampled.tokens, last)

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
        self._adapters.begin_logits(np.full(len(hidden), row))
        targets = torch.from_numpy(self._rows.tokens[row, first + 1 : first + 1 + hidden.shape[0]])
        parts = [slice(at, at + _PROMPT_LOGPROB_ROWS) for at in range(0, hidden.shape[0], _PROMPT_LOGPROB_ROWS)]
        return [
            self._sampler.prompt_logprobs(self._model.logits(hidden[part]), targets[part].to(self._device), top)
            for part in parts
        ]

    @torch.inference_mode()
    def _forget(self, row: int, tokens: int) -> None:
        """Clear a row's first ``tokens`` tokens, which may hold NaN: masked scores would carry it into the next
        user of a block. What the table holds behind them is others' by now."""
        table = self._rows.block_tables[row, : -(-tokens // self._block_size)]
        blocks = torch.from_numpy(np.unique(table).astype(np.int64)).to(self._device)
        for cache in self._caches:
            cache.index_fill_(self._attention.block_axis, blocks, 0)


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sampled tokens on their way to the host. ``arrived`` marks the end of these copies on a GPU.

    ``kept`` is there where the step had drafts.
    """

    samples: Samples
    tokens: Tensor
    finite: Tensor
    sampled: Sampled
    arrived: torch.cuda.Event | None
    kept: Tensor | None

    @staticmethod
    def send(sampled: Sampled, samples: Samples) -> InFlight:
        """Start the copies."""
        if not sampled.tokens.is_cuda:
            return InFlight(samples, sampled.tokens, sampled.finite, sampled, None, sampled.kept)
        tokens = sampled.tokens.to("cpu", non_blocking=True)
        finite = sampled.finite.to("cpu", non_blocking=True)
        kept = None if sampled.kept is None else sampled.kept.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return InFlight(samples, tokens, finite, sampled, arrived, kept)

    def results(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[int, list[int]]]:
        """Wait; for each row that sampled its index in the plan and its new token; which positions were kept; and
        by index the drafted tokens that were right."""
        if self.arrived is not None:
            self.arrived.synchronize()
        index, drafts = self.samples.index, self.samples.drafts
        if drafts is None or self.kept is None:
            return index, self.tokens.numpy(), None, {}
        index, kept = index[drafts.firsts], self.kept.numpy()
        tokens, accepted = gather_results(drafts, self.tokens.numpy(), kept, index)
        return index, tokens, kept, accepted


class Pending:
    """A launched step. ``result`` waits for its tokens, and for nothing launched after them."""

    def __init__(
        self,
        plan: StepPlan,
        rows: Rows,
        prompt_logprobs: PromptLogprobs,
        pooled: Pooled | None,
        forget: Callable[[int, int], None],
    ) -> None:
        self._plan, self._rows = plan, rows
        self.sampling: Callable[[Masks | None], tuple[InFlight | None, str]] | None = None  # what is left to do
        self._sampled: InFlight | None = None
        self._prompt_logprobs, self._pooled, self._forget = prompt_logprobs, pooled, forget
        self._guessing_failed = ""
        self._generations = rows.generations[plan.rows]

    def sample(self, masks: Masks | None) -> None:
        """See :class:`octavo.contracts.executor.PendingStep`."""
        if self.sampling is not None:
            self._sampled, self._guessing_failed = self.sampling(masks)
            self.sampling = None

    def result(self) -> StepResult:
        tokens = np.full(len(self._plan.rows), -1, np.int64)
        logprobs: dict[int, list[RowLogprobs]] = {}
        failed: dict[int, str] = {}
        accepted: dict[int, list[int]] = {}
        if self._sampled is not None:
            flight, index = self._sampled, self._sampled.samples.index
            sampled_rows, last, kept, accepted = flight.results()
            tokens[sampled_rows] = last
            if flight.sampled.logprobs is not None:
                for at, one in flight.sampled.logprobs.to_host().items():
                    if kept is None or kept[at]:
                        logprobs.setdefault(int(index[at]), []).append(one)
            finite = flight.finite.numpy()
            failed = {} if finite.all() else self._failures(np.unique(index[~finite]))
            failed |= {int(index[at]): reason for at, reason in flight.sampled.failed.items()}
        prompts = {
            at: [one for piece in pieces for one in piece.to_host()] for at, pieces in self._prompt_logprobs.items()
        }
        pooled = {} if self._pooled is None else self._pooled.results()
        if broken := [at for at, vector in pooled.items() if not np.isfinite(vector).all()]:
            failed |= self._failures(np.asarray(broken))
        return StepResult(
            self._plan.number, tokens, logprobs, prompts, failed, accepted, pooled, self._guessing_failed
        )

    def _failures(self, broken: np.ndarray) -> dict[int, str]:
        for index in broken:
            row = self._plan.rows[index]
            if self._rows.generations[row] == self._generations[index]:
                self._forget(row, self._plan.positions[index] + self._plan.counts[index])
        return {int(index): _NOTHING_POSSIBLE for index in broken}
