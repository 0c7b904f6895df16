"""Trying a scheduling policy: the real scheduler and block pool on a simulated device, in milliseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.cache.blocks import BlockPool, EngineInvariantError
from octavo.cache.prefix import root_hash
from octavo.contracts.executor import Executor, PendingStep
from octavo.contracts.scheduling import SchedulingPolicy
from octavo.params import SamplingParams
from octavo.scheduling.request import Request
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.step import Progress, Scheduled
from octavo.testing.simulated import SimulatedExecutor, expected_answer


class StepLoop:
    """Schedule, launch, take in the result of ``executor.depth`` steps ago."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self._in_flight: deque[tuple[Scheduled, PendingStep]] = deque()

    @property
    def idle(self) -> bool:
        """Nothing to schedule and nothing in flight."""
        return not self._in_flight and not self.scheduler.has_work

    def step(self) -> list[Progress]:
        """One turn. Without anything to schedule, the oldest step in flight is waited for."""
        scheduled = self.scheduler.schedule()
        if scheduled is not None:
            self._in_flight.append((scheduled, self.executor.launch(scheduled.plan)))
        depth = self.executor.depth if self.scheduler.overlaps else 0
        progress = []
        if self._in_flight and (scheduled is None or len(self._in_flight) > depth):
            progress += self._finish_oldest()
        while len(self._in_flight) > depth:
            progress += self._finish_oldest()
        return progress

    def _finish_oldest(self) -> list[Progress]:
        scheduled, pending = self._in_flight.popleft()
        return self.scheduler.update(scheduled, pending.result())


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A request of a trial. ``arrival`` is the number of the step before which it comes."""

    prompt_length: int
    max_tokens: int
    arrival: int = 0
    priority: int = 0
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a job; times are step numbers."""

    first_token: int
    finished: int
    preemptions: int


def try_policy(
    policy: SchedulingPolicy,
    jobs: Sequence[Job],
    *,
    num_blocks: int = 1024,
    block_size: int = 16,
    max_sequences: int = 16,
    max_batch_tokens: int = 512,
    depth: int = 0,
    max_steps: int = 100_000,
) -> list[Outcome]:
    """Run ``jobs`` to their end under ``policy``, verifying every step. One outcome a job, in order.

    The policy's clock (``LoadView.now``, ``arrival``) counts steps. Raises :class:`octavo.errors.PluginError` for
    wrong answers of the policy, and :class:`EngineInvariantError` when the jobs are not done after ``max_steps``.
    """
    now = 0
    scheduler = Scheduler(
        pool=BlockPool(num_blocks),
        policy=policy,
        policy_name=type(policy).__name__,
        block_size=block_size,
        max_sequences=max_sequences,
        max_batch_tokens=max_batch_tokens,
        max_length=num_blocks * block_size,
        max_queue=len(jobs),
        prefix_caching=True,
        clock=lambda: float(now),
    )
    executor = SimulatedExecutor(
        num_blocks=num_blocks, block_size=block_size, depth=depth, max_batch_tokens=max_batch_tokens
    )
    loop = StepLoop(scheduler, executor)
    requests = [_request(index, job) for index, job in enumerate(jobs)]
    coming = deque(sorted(requests, key=lambda request: request.arrival))
    first, finished = [-1] * len(jobs), [-1] * len(jobs)
    while coming or not loop.idle:
        now += 1
        if now > max_steps:
            raise EngineInvariantError(f"{finished.count(-1)} jobs are not done after {max_steps} steps.")
        while coming and coming[0].arrival <= now:
            scheduler.add(coming.popleft())
        for progress in loop.step():
            if progress.first:
                first[progress.request.id] = now
            if progress.finish_reason:
                finished[progress.request.id] = now
        scheduler.check()
    for request in requests:
        _verify(request)
    return [
        Outcome(first_token=first[index], finished=finished[index], preemptions=request.preemptions)
        for index, request in enumerate(requests)
    ]


def _request(index: int, job: Job) -> Request:
    return Request(
        id=index,
        prompt_ids=[(index * 7919 + place) % 50_000 for place in range(job.prompt_length)],
        params=SamplingParams(max_tokens=job.max_tokens),
        max_tokens=job.max_tokens,
        root=root_hash("simulated", "float32", job.adapter, None),
        priority=job.priority,
        arrival=float(job.arrival),
        adapter=job.adapter,
    )


def _verify(request: Request) -> None:
    expected = expected_answer(request.prompt_ids, request.params, max_tokens=len(request.output_ids))
    if request.output_ids != expected:
        raise EngineInvariantError(f"Job {request.id} got a wrong answer.")
