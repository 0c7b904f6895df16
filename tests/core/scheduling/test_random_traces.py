"""Random traces on the simulated device: whatever arrives, is aborted or preempted, every answer is the one that an
undisturbed run gives, and nothing is lost, delivered twice, starved or leaked."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.cache.blocks import BlockPool
from octavo.cache.prefix import extend, root_hash
from octavo.contracts.proposer import Draft
from octavo.errors import OverloadedError, RequestError
from octavo.params import SamplingParams
from octavo.scheduling.adapters import AdapterSlots
from octavo.scheduling.device_speculator import DeviceSpeculator
from octavo.scheduling.policies import FcfsPolicy, PriorityPolicy
from octavo.scheduling.request import Request
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.speculator import Speculator
from octavo.testing.simulated import VOCABULARY, SimulatedExecutor, expected_answer
from octavo.testing.trial import StepLoop

POISON = VOCABULARY  # no sampled token, so that only prompts bring it


class RandomPolicy:
    """As bad as a policy may be: any order, some left out, any victim, any budget; lists and generators."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def order(self, requests, load):
        indices = [index for index in range(len(requests)) if self.random.random() < 0.8]
        self.random.shuffle(indices)
        return indices if self.random.random() < 0.5 else (index for index in indices)

    def victim(self, candidates, load):
        return self.random.randrange(len(candidates))

    def prefill_budget(self, load, decodes, budget):
        return self.random.randint(0, budget)


class Guesser:
    """A proposer that knows the answers, and is wrong now and then."""

    max_tokens = 6

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.random = Random(trace.world.seed)
        self.rows: dict[int, list[int]] = {}

    def reserve(self, row, tokens):
        assert row not in self.rows
        self.rows[row] = list(tokens)

    def release(self, row):
        del self.rows[row]

    def propose(self, rows):
        drafts = [self.guess(row) for row in rows]
        lengths = np.array([len(draft) for draft in drafts])
        tokens = np.full((len(drafts), self.max_tokens), VOCABULARY - 1)
        for index, draft in enumerate(drafts):
            tokens[index, : len(draft)] = draft
        return Draft(tokens, lengths)

    def guess(self, asked):
        request = next(request for request in self.trace.scheduler._ledger.running if request.row == asked.row)
        self.rows[asked.row] += asked.fresh
        assert self.rows[asked.row] == request.prompt_ids + request.output_ids
        rightness = {"good": 1.0, "poor": 0.6}[self.trace.world.guesses]
        answer = expected_answer(
            request.prompt_ids,
            request.params,
            max_tokens=len(request.output_ids) + asked.limit,
            seed=request.seed,
            adapter=request.adapter_key,
            stop_ids=sorted(request.stop_ids),
        )
        draft = answer[len(request.output_ids) :]
        draft = [token if self.random.random() < rightness else (token + 1) % VOCABULARY for token in draft]
        return draft[: self.random.randint(0, len(draft))] if rightness < 1 else draft


@dataclass(frozen=True)
class World:
    """The engine's limits."""

    policy: str
    seed: int
    depth: int
    block_size: int
    capacity: int  # tokens in the cache; two blocks at least
    max_sequences: int
    max_batch_tokens: int
    max_length: int
    prefix_caching: bool
    adapter_slots: int = 2
    guesses: str = "none"  # how good drafts are

    @property
    def blocks(self) -> int:
        return max(2, self.capacity // self.block_size)

    def make_policy(self):
        return {"fcfs": FcfsPolicy, "priority": PriorityPolicy}.get(self.policy, lambda: RandomPolicy(self.seed))()


@dataclass
class Answer:
    """What has been delivered for one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    firsts: int = 0
    finish_reason: str | None = None


class Trace:
    """One engine, everything that was asked of it, and everything it delivered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pool = BlockPool(world.blocks + 1)
        self.guesser = Guesser(self)
        self.speculator: Any = None
        longest = 0
        if world.guesses == "device":
            longest = 5
            self.speculator = DeviceSpeculator("guesser", longest, world.max_sequences, world.max_batch_tokens)
        elif world.guesses != "none":
            self.speculator = Speculator(self.guesser, "guesser", VOCABULARY, world.max_sequences)
        self.scheduler = Scheduler(
            pool=self.pool,
            policy=world.make_policy(),
            policy_name=world.policy,
            block_size=world.block_size,
            max_sequences=world.max_sequences,
            max_batch_tokens=world.max_batch_tokens,
            max_length=world.max_length,
            max_queue=24,
            prefix_caching=world.prefix_caching,
            adapters=AdapterSlots(world.adapter_slots),
            speculator=self.speculator,
            clock=lambda: 0.0,
        )
        self.executor = SimulatedExecutor(
            num_blocks=world.blocks + 1,
            block_size=world.block_size,
            depth=world.depth,
            max_sequences=world.max_sequences,
            max_batch_tokens=world.max_batch_tokens,
            poison=POISON,
            longest_guess=longest,
        )
        self.loop = StepLoop(self.scheduler, self.executor)
        self.requests: list[Request] = []
        self.answers: dict[int, Answer] = {}
        self.steps = 0

    def add(self, request: Request) -> None:
        capacity = self.world.blocks * self.world.block_size
        try:
            self.scheduler.add(request)
        except OverloadedError:
            assert self.scheduler.stats().waiting >= 24
        except RequestError:
            assert request.prompt_length > min(capacity, self.world.max_length - 1)
        else:
            self.requests.append(request)
            self.answers[request.id] = Answer()
        self.check()

    def abort(self, index: int) -> None:
        request = self.requests[index % len(self.requests)]
        was_live = request.finish_reason is None
        assert self.scheduler.abort(request.id) is (request if was_live else None)
        self.check()

    def step(self) -> None:
        self.steps += 1
        for progress in self.loop.step():
            answer = self.answers[progress.request.id]
            assert answer.finish_reason is None, "progress after the end"
            assert progress.token_ids or progress.prompt_logprobs or progress.finish_reason
            assert progress.first == (bool(progress.token_ids) and not answer.tokens)
            answer.firsts += progress.first
            answer.tokens += progress.token_ids
            answer.logprobs += progress.logprobs or []
            answer.prompt_logprobs += progress.prompt_logprobs or []
            answer.finish_reason = progress.finish_reason
            assert (progress.error is not None) == (progress.finish_reason == "error")
        self.check()

    def check(self) -> None:
        """The scheduler's own audit, and the published blocks against hashes computed from scratch."""
        self.scheduler.check()
        size = self.world.block_size
        for request in self.requests:
            tokens = request.prompt_ids + request.output_ids
            digest = request.root
            for index, block in enumerate(request.blocks):
                if self.pool.hash_of(block) is None:
                    continue
                assert (index + 1) * size <= min(len(tokens), request.computed)
                digest = request.root
                for start in range(0, (index + 1) * size, size):
                    digest = extend(digest, tokens[start : start + size])
                assert self.pool.hash_of(block) == digest

    def drain(self) -> None:
        bound = self.steps + self.most_steps()
        while not self.loop.idle:
            assert self.steps < bound, "starved"
            self.step()
        self.verify()

    def most_steps(self) -> int:
        """More than any fair policy needs: each request alone, computed anew for each of its tokens."""
        if self.world.policy == "random":
            return 200_000
        alone = sum(request.limit - len(request.output_ids) for request in self.requests)
        chunks = max((request.limit for request in self.requests), default=0) // self.world.max_batch_tokens
        return 10 + alone * (2 + chunks)

    def verify(self) -> None:
        for request in self.requests:
            self.verify_request(request, self.answers[request.id])
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
        assert self.pool.free_count == self.world.blocks
        assert stats.preemptions == sum(request.preemptions for request in self.requests)
        assert stats.prefix_hits <= stats.prefix_queries
        assert stats.speculation_off == ""
        assert stats.drafts <= stats.drafted >= stats.accepted == sum(stats.accepted_at)
        assert stats.accepted_at == tuple(sorted(stats.accepted_at, reverse=True))
        self.verify_rows()

    def verify_request(self, request: Request, answer: Answer) -> None:
        assert answer.tokens == request.output_ids
        assert answer.firsts == bool(answer.tokens)
        expected = expected_answer(
            request.prompt_ids,
            request.params,
            max_tokens=request.limit - request.prompt_length,
            stop_ids=sorted(request.stop_ids),
            seed=request.seed,
            adapter=request.adapter_key,
        )
        if request.finish_reason == "abort":
            assert answer.tokens == expected[: len(answer.tokens)]
            return
        assert answer.finish_reason == request.finish_reason
        if POISON in request.prompt_ids:
            assert (answer.finish_reason, answer.tokens) == ("error", [])
            return
        assert answer.tokens == expected
        stopped = expected[-1] in request.stop_ids and len(expected) >= request.params.min_tokens
        assert answer.finish_reason == ("stop" if stopped else "length")
        assert request.stop_reason == (expected[-1] if stopped and expected[-1] not in request.eos_ids else None)
        wanted = expected if request.params.logprobs is not None else []
        assert [entry.token for entry in answer.logprobs] == wanted
        wanted = request.prompt_ids[1:] if request.params.prompt_logprobs is not None else []
        assert [entry.token for entry in answer.prompt_logprobs] == wanted

    def verify_rows(self) -> None:
        """One more request carries the last ends to the device: then no other row may be left."""
        last = Request(id=10**6, prompt_ids=[1], params=SamplingParams(), max_tokens=1, root=b"", arrival=10.0**6)
        self.scheduler.add(last)
        row = -1
        while last.finish_reason is None:
            row = max(row, last.row)
            self.loop.step()
        while not self.loop.idle:
            self.loop.step()
        assert len(self.executor.active_rows) == 1
        assert len(self.guesser.rows) <= 1


worlds = st.builds(
    World,
    policy=st.sampled_from(["fcfs", "priority", "random"]),
    seed=st.integers(0, 2**16),
    depth=st.integers(0, 2),
    block_size=st.sampled_from([1, 2, 4, 16]),
    capacity=st.integers(20, 90),
    max_sequences=st.integers(1, 6),
    max_batch_tokens=st.integers(1, 40),
    max_length=st.integers(20, 100),
    prefix_caching=st.sampled_from([True, True, True, False]),
    adapter_slots=st.integers(1, 3),
    guesses=st.sampled_from(["none", "good", "poor", "device"]),
)
arrivals = st.fixed_dictionaries(
    {
        "prefix": st.integers(0, 2),
        "shared": st.integers(0, 30),
        "tail": st.lists(st.integers(0, 2), max_size=4),
        "max_tokens": st.integers(1, 25),
        "min_tokens": st.integers(0, 3),
        "priority": st.integers(-1, 1),
        "adapter": st.integers(0, 3),
        "salt": st.sampled_from([None, "a"]),
        "stops": st.frozensets(st.integers(0, VOCABULARY - 1), max_size=4),
        "logprobs": st.sampled_from([None, None, 0]),
        "prompt_logprobs": st.sampled_from([None, None, None, 0]),
        "poisoned": st.sampled_from([False] * 9 + [True]),
    }
)
operations = st.lists(
    st.one_of(
        arrivals,
        st.integers(1, 6).map(lambda count: ("steps", count)),
        st.integers(0, 50).map(lambda index: ("abort", index)),
        st.just(("reset", 0)),
    ),
    max_size=40,
)


def random_arrival(random: Random) -> dict[str, Any]:
    return {
        "prefix": random.randrange(3),
        "shared": random.randrange(31),
        "tail": [random.randrange(3) for _ in range(random.randrange(5))],
        "max_tokens": random.randint(1, 25),
        "min_tokens": random.randrange(4),
        "priority": random.randint(-1, 1),
        "adapter": random.randrange(4),
        "salt": random.choice([None, "a"]),
        "stops": frozenset(random.sample(range(VOCABULARY), random.randrange(4))),
        "logprobs": random.choice([None, None, 0]),
        "prompt_logprobs": random.choice([None, None, None, 0]),
        "poisoned": random.random() < 0.03,
    }


def random_script(random: Random) -> list[Any]:
    script: list[Any] = []
    for _ in range(random.randint(20, 120)):
        chance = random.random()
        if chance < 0.4:
            script.append(random_arrival(random))
        elif chance < 0.93:
            script.append(("steps", random.randint(1, 6)))
        else:
            script.append(("abort", random.randrange(50)) if chance < 0.985 else ("reset", 0))
    return script


def make_request(number: int, wish: dict[str, Any]) -> Request:
    prefix = [(wish["prefix"] * 31 + place * 7) % VOCABULARY for place in range(wish["shared"])]
    prompt = [*prefix, *wish["tail"], *([POISON] if wish["poisoned"] else [])] or [0]
    most = wish["max_tokens"]
    stops = wish["stops"]
    params = SamplingParams(
        max_tokens=most,
        min_tokens=min(wish["min_tokens"], most),
        logprobs=wish["logprobs"],
        prompt_logprobs=wish["prompt_logprobs"],
    )
    return Request(
        id=number,
        prompt_ids=prompt,
        params=params,
        max_tokens=most,
        root=root_hash("model", "float32", f"adapter {wish['adapter']}", wish["salt"]),
        priority=wish["priority"],
        arrival=float(number // 2),  # ties happen
        adapter_key=wish["adapter"],
        stop_ids=stops,
        eos_ids=frozenset(sorted(stops)[:1]),
        seed=wish["adapter"],
    )


def play(world: World, script: list[Any]) -> Trace:
    trace = Trace(world)
    for number, operation in enumerate(script):
        if isinstance(operation, dict):
            trace.add(make_request(number, operation))
            continue
        name, value = operation
        if name == "reset":
            trace.scheduler.reset_prefix_cache()
        elif name == "abort" and trace.requests:
            trace.abort(value)
        elif name == "steps":
            for _ in range(value):
                trace.step()
    trace.drain()
    return trace


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds, script=operations)
def test_every_answer_is_that_of_an_undisturbed_run(world, script):
    play(world, script)


@settings(max_examples=150, deadline=None)
@given(world=worlds, seed=st.integers(0, 2**32))
def test_every_answer_is_that_of_an_undisturbed_run_in_busy_traces(world, seed):
    play(world, random_script(Random(seed)))


@pytest.mark.parametrize("guesses", ["none", "good", "poor", "device"])
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", ["fcfs", "priority", "random"])
def test_a_long_busy_day(policy, depth, guesses):
    """Thousands of steps of one engine with a pool so small that it preempts all the time."""
    random = Random(f"{policy} {depth}")
    trace = Trace(World(policy, 1, depth, 4, 80, 6, 24, 70, True, guesses=guesses))
    while trace.steps < 1500:
        if random.random() < 0.25 and trace.scheduler.stats().waiting < 20:
            trace.add(make_request(len(trace.requests), random_arrival(random)))
        if random.random() < 0.02 and trace.requests:
            trace.abort(len(trace.requests) - 1 - random.randrange(min(8, len(trace.requests))))
        trace.step()
    trace.drain()
    stats = trace.scheduler.stats()
    assert len(trace.requests) > 100
    assert stats.preemptions > (20 if guesses == "none" else 0)
    assert stats.prefix_hits > 100
    if depth == 0 and guesses != "none":
        assert stats.accepted > 100
        assert stats.accepted < stats.drafted or guesses == "good"


def test_guessers_see_everything():
    """Without a rest the guesser's own cache has no hole, though rows wait, share prefixes and are preempted."""
    random = Random(7)
    trace = Trace(World("fcfs", 1, 0, 4, 110, 6, 24, 70, True, guesses="device"))
    trace.speculator = DeviceSpeculator("guesser", 5, 6, 24, fixed=True)
    trace.scheduler._speculator = trace.speculator
    while trace.steps < 1000:
        if random.random() < 0.25 and trace.scheduler.stats().waiting < 20:
            trace.add(make_request(len(trace.requests), random_arrival(random) | {"poisoned": False}))
        trace.step()
    trace.drain()
    stats = trace.scheduler.stats()
    assert stats.preemptions > 0
    assert stats.accepted > 500
    assert trace.executor.holes == 0
