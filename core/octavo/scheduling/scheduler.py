"""The scheduler: which tokens are computed in the next step, and in which blocks.

The algorithm. There are no phases. A request has *known* tokens (prompt, outputs, and sampled ones that are still
on the device) and *computed* ones; a step hands out a budget of tokens so that the second catches up with the
first. When it has, a token is sampled, which makes one more known token. One missing token is a decode, many are
a prompt, a part of a prompt, or a recomputation: all the same here.

1. The running requests, in the policy's order. Each gets what it lacks, cut to the budget. Tokens for the decodes
   are set aside before prompts get any, and the policy may keep more from the prompts.
2. A request that needs a block when none is free: the policy names a victim among the running requests that got
   nothing in this step yet (that one included). The victim gives back row and blocks and waits again; what it
   has said so far is kept and later computed anew.
3. Unless someone was preempted, waiting requests are admitted in the policy's order, up to the first that doesn't
   fit. A request starts behind the longest published prefix of its tokens (one token at least is left to compute).
   While others run, all its known tokens must fit and leave a few blocks free, or it would soon be preempted.
   One whose adapter finds no slot on the device is passed over, and of one priority those come last whose adapter
   has its share of the rows: see :mod:`octavo.scheduling.adapters`.
4. A full block is published as soon as its tokens are known and its computation is granted. Requests admitted in
   the very same step may share it: in each layer, all keys and values are written before any is read.
5. `schedule` may be called again before `update` has brought the last step's tokens (overlap): these count as
   known, for the device has them. A preempted request waits for its own before it is readmitted.
6. With a proposer, a decode may compute guessed tokens behind its missing one. They are not known and don't count
   as computed: `update` adds those that turned out right to both, and takes back the blocks of the others. Drafts
   get tokens before prompts do, and blocks only while everyone who runs could have one more. Where the device
   guesses, behind the step it is told to, blocks for what it guesses are got ahead, under the same condition.
7. A request that pools goes the way of one that may say one token; its result stands for that token.

Both lines, running and waiting, are in order of arrival. An answer that outgrows what the whole pool can hold
ends with "length": that depends on sizes alone, never on who else is running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.cache.blocks import BlockPool, EngineInvariantError
from octavo.contracts.api import EngineStats
from octavo.contracts.executor import RowLogprobs, StepResult
from octavo.contracts.scheduling import LoadView, SchedulingPolicy
from octavo.errors import OverloadedError, RequestError
from octavo.scheduling.adapters import AdapterSlots
from octavo.scheduling.guard import PolicyGuard
from octavo.scheduling.ledger import Ledger
from octavo.scheduling.request import Request
from octavo.scheduling.speculating import Speculating
from octavo.scheduling.step import Progress, Scheduled, StepBuilder

if TYPE_CHECKING:
    import numpy as np


class Scheduler:
    """Owns the requests, their rows and their blocks. Not thread-safe."""

    def __init__(
        self,
        *,
        pool: BlockPool,
        policy: SchedulingPolicy,
        policy_name: str,
        block_size: int,
        max_sequences: int,
        max_batch_tokens: int,
        max_length: int,
        max_queue: int,
        prefix_caching: bool,
        speculator: Speculating | None = None,
        clock: Callable[[], float] = time.monotonic,
        adapters: AdapterSlots | None = None,
    ) -> None:
        self._pool = pool
        self._policy = PolicyGuard(policy, policy_name)
        self._ledger = Ledger(pool, block_size, max_sequences, prefix_caching, adapters)
        self._block_size = block_size
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self._max_length = max_length
        self._max_queue = max_queue
        self._speculator = speculator
        self._clock = clock
        self._guess = 0  # tokens that the device guesses behind the step being scheduled

    @property
    def has_work(self) -> bool:
        """True while any request is unfinished. ``schedule`` may still have nothing to do just now."""
        return len(self._ledger) > 0

    @property
    def overlaps(self) -> bool:
        """Whether ``schedule`` may be called before ``update`` has brought the last step's tokens. Drafts follow
        known tokens, so while there are any it may not."""
        return self._speculator is None or self._speculator.resting

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises :class:`RequestError` when it can't be served here, :class:`OverloadedError` when the queue is full.
        """
        length, waiting = request.prompt_length, len(self._ledger.waiting)
        capacity = self._pool.total * self._block_size
        if not length:
            raise RequestError("The prompt is empty; it needs at least one token.", param="prompt")
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {request.max_tokens}.", param="max_tokens")
        if length >= self._max_length:
            raise _too_long(
                f"with a context length of {self._max_length}, it may have {self._max_length - 1}", length
            )
        if length > capacity:
            raise _too_long(f"the KV cache holds {capacity} ({self._pool.total} blocks)", length)
        if waiting >= self._max_queue:
            raise OverloadedError(f"{waiting} requests are waiting, the most that is allowed.")
        # The last token is never computed: one more than the cache holds can be known.
        request.limit = min(length + request.max_tokens, self._max_length, capacity + 1)
        self._ledger.enter(request)

    def abort(self, request_id: int, reason: str = "abort") -> Request | None:
        """End a request wherever it is; ``None`` if it is unknown or has ended. Tokens in flight are dropped."""
        request = self._ledger.get(request_id)
        if request is not None:
            self._finish(request, reason)
        return request

    def fail_adapter(self, key: int, reason: str) -> list[Progress]:
        """End all waiting requests of an adapter that can't be had."""
        failed = [request for request in self._ledger.waiting if request.adapter_key == key]
        for request in failed:
            self._finish(request, "error")
        return [Progress(request, [], finish_reason="error", error=reason) for request in failed]

    def schedule(self) -> Scheduled | None:
        """The next step, or ``None`` when there is nothing to compute now.

        Raises :class:`octavo.errors.PluginError` when the policy misbehaves; nothing can be scheduled after that.
        """
        ledger = self._ledger
        step = StepBuilder(ledger.counters.steps + 1, self._max_batch_tokens)
        if self._speculator is not None:
            self._speculator.draft(ledger.running, self._max_batch_tokens)
            self._guess = self._speculator.guess
        if ledger.running:
            self._serve(step)
        if ledger.waiting and ledger.free_rows and not step.preempted:
            self._admit(step)
        scheduled = step.build(ledger.ends, ledger.adapters.changes, self._guess, self._block_size)
        if scheduled is not None:
            if self._speculator is not None:
                self._speculator.released(ledger.ends)
                self._speculator.launching(step, scheduled, self._clock())
            ledger.ends = []
            ledger.adapters.changes = []
            ledger.counters.steps += 1
        return scheduled

    def update(self, scheduled: Scheduled, result: StepResult) -> list[Progress]:
        """Take in what a step produced, in the order in which steps were scheduled.

        Requests that ended in the meantime get nothing; preempted ones keep their token.
        """
        plan = scheduled.plan
        if result.number != plan.number or len(result.tokens) != len(plan.rows):
            raise EngineInvariantError(f"The result of step {result.number} is not that of step {plan.number}.")
        if self._speculator is not None:
            self._speculator.finished(result, self._clock())
        tokens = result.tokens.tolist()
        progress = []
        for index, request in enumerate(scheduled.requests):
            if request.finish_reason is not None:
                continue
            if index in result.failed:
                self._pool.forget(request.hashes)  # what spoilt its logits may be in the cache
                self._finish(request, "error")
                progress.append(Progress(request, [], finish_reason="error", error=result.failed[index]))
                continue
            scores = result.prompt_logprobs.get(index)
            if scores:
                scores = _undelivered(request, plan.positions[index], scores)
            if plan.samples[index]:
                accepted = result.accepted.get(index, [])
                if index in plan.drafts:
                    self._settle(request, len(plan.drafts[index]), len(accepted))
                fresh = [*accepted, tokens[index]]
                taken = self._take(request, fresh, result.logprobs.get(index), scores)
                taken.drafted, taken.accepted = len(plan.drafts.get(index, ())), len(accepted)
                progress.append(taken)
                if request.row >= 0 and self._speculator is not None:
                    self._ledger.trim(request, plan.guess)
                    request.guessed = request.ahead  # what lies behind its blocks was guessed from nothing
            elif request.pooling and plan.positions[index] + plan.counts[index] == request.prompt_length:
                progress.append(self._take_pooled(request, result.pooled.get(index)))
            elif scores:
                progress.append(Progress(request, [], None, scores))
        return progress

    def stats(self) -> EngineStats:
        """Figures as of now."""
        stats, speculator = self._ledger.stats(), self._speculator
        if speculator is None:
            return stats
        counts = speculator.counts
        return replace(
            stats,
            drafts=counts.drafts,
            drafted=counts.drafted,
            accepted=counts.accepted,
            accepted_at=tuple(counts.accepted_at),
            speculation_off=speculator.off,
        )

    def reset_prefix_cache(self) -> None:
        """No later request starts behind what was computed before now."""
        self._pool.reset()

    def check(self) -> None:
        """Verify all books; raises :class:`EngineInvariantError`. Slow: for tests and for idle engines."""
        self._ledger.check()

    def _serve(self, step: StepBuilder) -> None:
        running = tuple(self._ledger.running)
        block_size = self._block_size
        for index in self._policy.order(running, self._load()):
            if not step.budget:
                break
            request = running[index]
            known, computed = request.known, request.computed
            if request.row < 0 or known >= request.limit or request.drafted:
                continue  # preempted just now, or its last token or a draft is in flight
            count = known - computed
            drafts = self._affordable(request, step) if request.drafts else []
            if count > 1:
                count = min(count, self._prompt_budget(step))
                if not count:
                    continue
                step.prompt_left -= count
            tokens = count + len(drafts)
            if computed + tokens > len(request.blocks) * block_size and not self._extend(request, tokens, step):
                continue
            self._grant(request, count, step, drafts)

    def _affordable(self, request: Request, step: StepBuilder) -> list[int]:
        """As much of a request's draft as takes no block that a running request may need for its next token."""
        end = request.known
        spare = max(0, self._pool.free_count - len(self._ledger.running))
        blocks = max(len(request.blocks), self._ledger.blocks_for(end)) + spare
        return request.drafts[: max(0, min(step.budget - 1, blocks * self._block_size - end))]

    def _extend(self, request: Request, count: int, step: StepBuilder) -> bool:
        """Blocks for ``count`` more tokens; False when the request itself was preempted for want of them."""
        need = self._ledger.blocks_for(request.computed + count) - len(request.blocks)
        while self._pool.free_count < need:
            candidates = tuple(other for other in self._ledger.running if other.granted != step.number)
            victim = candidates[self._policy.victim(candidates, self._load())]
            self._ledger.preempt(victim)
            step.preempted = True
            if victim is request:
                return False
        blocks = self._pool.allocate(need)
        step.extend(request, blocks)
        request.blocks += blocks
        return True

    def _look_ahead(self, request: Request, guess: int, step: StepBuilder) -> None:
        """Blocks for the tokens that the device will guess behind this step's, unless others may need them."""
        end = request.computed + request.drafted
        need = self._ledger.blocks_for(min(end + guess, request.limit)) - len(request.blocks)
        if 0 < need <= self._pool.free_count - len(self._ledger.running):
            blocks = self._pool.allocate(need)
            step.extend(request, blocks)
            request.blocks += blocks
        request.ahead = max(0, len(request.blocks) * self._block_size - end)

    def _admit(self, step: StepBuilder) -> None:
        ledger = self._ledger
        if ledger.running and self._pool.free_count <= self._reserve():
            return  # whoever came would need a block
        if not self._prompt_budget(step):
            return
        ledger.adapters.begin(step.number, self._max_sequences)
        for request in self._in_turn(tuple(ledger.waiting)):
            if request.pending or not ledger.adapters.admits(request.adapter_key):
                continue
            if not self._start(request, step) or not step.prompt_left or not ledger.free_rows:
                return

    def _in_turn(self, waiting: tuple[Request, ...]) -> Iterator[Request]:
        """In the policy's order, but among equals those last whose adapter has its share of the rows."""
        later: list[Request] = []
        for index in self._policy.order(waiting, self._load()):
            request = waiting[index]
            if later and later[0].priority != request.priority:
                yield from later
                later = []
            if self._ledger.adapters.crowded(request.adapter_key):
                later.append(request)
            else:
                yield request
        yield from later

    def _start(self, request: Request, step: StepBuilder) -> bool:
        """Admit a waiting request; False when the blocks don't suffice."""
        ledger, pool = self._ledger, self._pool
        hits = ledger.match(request)
        if ledger.running:
            taken = ledger.blocks_for(request.known) - len(hits) + pool.idle(hits)
            if pool.free_count - taken < self._reserve():
                return False
        start = len(hits) * self._block_size
        count = min(request.known - start, step.prompt_left)
        step.prompt_left -= count
        ledger.seat(request, hits, start + count)
        step.start(request)
        self._grant(request, count, step)
        return True

    def _grant(self, request: Request, count: int, step: StepBuilder, drafts: Sequence[int] = ()) -> None:
        computed = request.computed = request.computed + count
        request.granted = step.number
        request.drafted, request.guessed = len(drafts), 0
        sample = computed == request.known
        samples = sample and not request.pooling
        step.grant(request, count, samples, drafts)
        if request.ahead or (samples and self._guess):
            self._look_ahead(request, self._guess if samples else 0, step)
        if sample:
            request.pending += 1
            request.known += 1
        if computed >= (request.published + 1) * self._block_size:
            self._ledger.publish(request)

    def _prompt_budget(self, step: StepBuilder) -> int:
        """Tokens that prompts may still use in this step. The policy is asked once, and only if need be."""
        if step.prompt_left < 0:
            coming = sum(
                1 + len(request.drafts)
                for request in self._ledger.running
                if request.granted != step.number
                and request.known - request.computed == 1
                and request.known < request.limit
            )
            decodes, left = step.decoding + coming, max(0, step.budget - coming)
            step.prompt_left = self._policy.prefill_budget(self._load(), decodes, left) if left else 0
            if left and not decodes:
                step.prompt_left = max(1, step.prompt_left)  # a policy may slow prompts, not stop the engine
        return step.prompt_left

    def _reserve(self) -> int:
        """Blocks that an admission must leave free, so that the running requests can grow a little."""
        return min(len(self._ledger.running), 1 + self._pool.total // 64)

    def _load(self) -> LoadView:
        return LoadView(
            now=self._clock(),
            running=len(self._ledger.running),
            waiting=len(self._ledger.waiting),
            max_sequences=self._max_sequences,
            free_blocks=self._pool.free_count,
            total_blocks=self._pool.total,
            block_size=self._block_size,
        )

    def _settle(self, request: Request, drafted: int, accepted: int) -> None:
        """A draft was verified; its right tokens are about to be taken."""
        if accepted > drafted:
            raise EngineInvariantError(f"Request {request.id} had {drafted} drafted tokens; {accepted} came back.")
        request.drafted = 0
        if self._speculator is not None:
            self._speculator.verified(request, drafted, accepted)

    def _take(
        self,
        request: Request,
        fresh: list[int],
        logprobs: list[RowLogprobs] | None,
        scores: list[RowLogprobs] | None,
    ) -> Progress:
        """The new tokens of a request that has not ended: one, and before it those that a draft had right. It
        ends here if the last was among them; what lies behind that is dropped."""
        if fresh[-1] < 0:
            raise EngineInvariantError(f"Request {request.id} was to be sampled, but no token came back.")
        outputs, reason = request.output_ids, None
        first = not outputs
        for count, token in enumerate(fresh, 1):
            outputs.append(token)
            reason = _ending(request, token)
            if reason:
                fresh = fresh[:count]
                break
        extra = len(fresh) - 1
        request.pending -= 1
        request.known += extra
        self._ledger.counters.generated_tokens += extra + 1
        if request.row >= 0:  # else it was preempted meanwhile, and nothing of it is in the cache
            request.computed += extra
            if request.computed >= (request.published + 1) * self._block_size:
                self._ledger.publish(request)
        if reason:
            self._finish(request, reason)
        return Progress(request, fresh, logprobs[: len(fresh)] if logprobs else None, scores, reason, first)

    def _take_pooled(self, request: Request, pooled: np.ndarray | None) -> Progress:
        """The one result of a request whose hidden states were pooled."""
        if pooled is None:
            raise EngineInvariantError(f"Request {request.id} was to be pooled, but nothing came back.")
        self._finish(request, "stop")
        return Progress(request, [], finish_reason="stop", first=True, pooled=pooled)

    def _finish(self, request: Request, reason: str) -> None:
        self._ledger.finish(request, reason)
        if self._speculator is not None:
            self._speculator.ended(request)


def _ending(request: Request, token: int) -> str | None:
    """Why the request ends with ``token``, the last of its outputs; ``None`` if it goes on."""
    outputs = request.output_ids
    if token in request.stop_ids and len(outputs) >= request.params.min_tokens:
        end_of_text = token in request.eos_ids and not request.params.ignore_eos
        request.stop_reason = None if end_of_text else token
        return "stop"
    return "length" if len(request.prompt_ids) + len(outputs) >= request.limit else None


def _undelivered(request: Request, start: int, scores: list[RowLogprobs]) -> list[RowLogprobs] | None:
    """Of the scores of positions ``start`` and on, those that did not come before a preemption."""
    fresh = scores[max(0, request.scored - start) :]
    request.scored = max(request.scored, start + len(scores))
    return fresh or None


def _too_long(limit: str, length: int) -> RequestError:
    return RequestError(f"The prompt has {length} tokens; {limit}.", param="prompt", code="context_length_exceeded")
