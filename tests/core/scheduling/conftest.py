from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from octavo.cache.blocks import BlockPool
from octavo.contracts.executor import StepResult
from octavo.params import SamplingParams
from octavo.scheduling.policies import FcfsPolicy
from octavo.scheduling.request import Request
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.step import Progress, Scheduled


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """Requests with prompts that share nothing, arriving one after the other. ``prompt``: ids or a length."""
    ids = itertools.count()

    def make(prompt: int | list[int] = 4, max_tokens: int = 8, **fields: Any) -> Request:
        number = next(ids)
        params = fields.pop("params", None) or SamplingParams(max_tokens=max_tokens)
        tokens = [1000 * (number + 1) + place for place in range(prompt)] if isinstance(prompt, int) else prompt
        fields = {"root": b"root", "arrival": float(number)} | fields
        return Request(id=number, prompt_ids=tokens, params=params, max_tokens=max_tokens, **fields)

    return make


@pytest.fixture
def make_scheduler() -> Callable[..., Scheduler]:
    """Schedulers with blocks of 4 tokens; ``blocks`` is the number of usable ones."""

    def make(blocks: int = 64, policy: Any = None, **fields: Any) -> Scheduler:
        defaults = {
            "policy_name": "tested",
            "block_size": 4,
            "max_sequences": 8,
            "max_batch_tokens": 64,
            "max_length": 1000,
            "max_queue": 100,
            "prefix_caching": True,
            "clock": lambda: 0.0,
        }
        return Scheduler(pool=BlockPool(blocks + 1), policy=policy or FcfsPolicy(), **(defaults | fields))

    return make


@pytest.fixture
def finish_step() -> Callable[..., list[Progress]]:
    """Hand the scheduler a result: ``token`` for each row that samples."""

    def finish(scheduler: Scheduler, scheduled: Scheduled, token: int = 7, **fields: Any) -> list[Progress]:
        plan = scheduled.plan
        tokens = np.array([token if sample else -1 for sample in plan.samples], dtype=np.int64)
        empty: dict[str, dict[int, Any]] = {"logprobs": {}, "prompt_logprobs": {}, "failed": {}}
        progress = scheduler.update(scheduled, StepResult(number=plan.number, tokens=tokens, **(empty | fields)))
        scheduler.check()
        return progress

    return finish


@pytest.fixture
def step(finish_step: Callable[..., list[Progress]]) -> Callable[..., Scheduled | None]:
    """Schedule and finish one step at depth 0; returns what was scheduled."""

    def run(scheduler: Scheduler, token: int = 7) -> Scheduled | None:
        scheduled = scheduler.schedule()
        scheduler.check()
        if scheduled is not None:
            finish_step(scheduler, scheduled, token)
        return scheduled

    return run
