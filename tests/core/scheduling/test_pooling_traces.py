"""Requests that pool among those that generate, on the simulated device, which knows what each must give."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from octavo.cache.blocks import BlockPool
from octavo.contracts.executor import RowStart
from octavo.params import SamplingParams
from octavo.scheduling.policies import FcfsPolicy
from octavo.scheduling.request import Request
from octavo.scheduling.scheduler import Scheduler
from octavo.testing.simulated import SimulatedExecutor, _Row, expected_answer
from octavo.testing.trial import StepLoop


def vector_of(request: Request) -> np.ndarray:
    start = RowStart(0, request.prompt_ids, request.prompt_length, request.params, 0, [], [], 0, request.pooling)
    return _Row(start).pooled()


@pytest.mark.parametrize("seed", range(30))
def test_every_vector_and_answer_is_right(seed):
    random = Random(seed)
    blocks, depth = random.choice([6, 12, 40]), random.choice([0, 1])
    scheduler = Scheduler(
        pool=BlockPool(blocks + 1),
        policy=FcfsPolicy(),
        policy_name="fcfs",
        block_size=4,
        max_sequences=random.choice([2, 8]),
        max_batch_tokens=random.choice([3, 8, 64]),
        max_length=64,
        max_queue=100,
        prefix_caching=random.random() < 0.7,
    )
    loop = StepLoop(scheduler, SimulatedExecutor(num_blocks=blocks + 1, block_size=4, depth=depth))
    requests, tokens, vectors = {}, {}, {}
    for number in range(25):
        stem = [1] * random.choice([0, 8])  # shared prefixes
        prompt = stem + [random.randrange(40) for _ in range(random.randint(1, 10))]
        pooling = random.choice(["", "last", "mean"])
        most = 1 if pooling else random.randint(1, 6)
        request = Request(
            id=number,
            prompt_ids=prompt,
            params=SamplingParams(max_tokens=most),
            max_tokens=most,
            root=b"r",
            arrival=float(number),
            pooling=pooling,
        )
        requests[number], tokens[number] = request, []
        scheduler.add(request)
        if random.random() < 0.1:
            scheduler.abort(random.randrange(number + 1))
        for _ in range(random.randint(0, 2)):
            take(loop, tokens, vectors)
            scheduler.check()
    for _ in range(1000):
        if not scheduler.has_work:
            break
        take(loop, tokens, vectors)
        scheduler.check()
    assert scheduler.stats().used_blocks == 0
    for number, request in requests.items():
        if request.finish_reason == "abort":
            continue
        if request.pooling:
            assert (request.finish_reason, tokens[number]) == ("stop", [])
            np.testing.assert_array_equal(vectors[number], vector_of(request))
        else:
            assert tokens[number] == expected_answer(
                request.prompt_ids, request.params, max_tokens=request.max_tokens
            )


def take(loop, tokens, vectors):
    for progress in loop.step():
        tokens[progress.request.id] += progress.token_ids
        if progress.pooled is not None:
            assert progress.first
            assert progress.request.id not in vectors
            vectors[progress.request.id] = progress.pooled
