"""The loop, on a simulated device whose right answers are known."""

from __future__ import annotations

import queue
import random
import threading
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cache.blocks import BlockPool
from octavo.cache.prefix import root_hash
from octavo.contracts.executor import StepPlan
from octavo.engine.core import BEAT_SECONDS, EngineCore, serve
from octavo.engine.failures import restore
from octavo.engine.messages import Abort, Beat, Fatal, Outputs, Ready, Rejected, ResetPrefixCache, Stop, Submit
from octavo.errors import EngineDeadError, OverloadedError, RequestError
from octavo.params import SamplingParams
from octavo.records import Context, DeviceProfile, ModelProfile
from octavo.scheduling.policies import FcfsPolicy
from octavo.scheduling.scheduler import Scheduler
from octavo.testing.simulated import SimulatedExecutor, expected_answer

VOCAB, BLOCK = 64, 4
EOS = 63


def ready(max_length=200, max_queue=100):
    model = ModelProfile(
        path="", name="simulated", format="config", architecture="", config={}, hidden_size=0, num_layers=0,
        num_heads=0, num_kv_heads=0, head_dim=0, vocab_size=VOCAB, max_length=max_length, dtype="float32",
        tied_embeddings=True, eos_ids=(EOS,), quantization=None, generation={}, digest="",
    )  # fmt: skip
    device = DeviceProfile(type="cpu", index=0, name="", capability=None, total_memory=0, free_memory=0, cores=1)
    context = Context(
        model=model, device=device, dtype="float32", kv_dtype="float32", block_size=BLOCK, max_length=max_length,
        max_sequences=8, max_batch_tokens=16,
    )  # fmt: skip
    return Ready(context, 0, max_length, max_queue, [])


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make(depth=0, blocks=100, max_queue=100, executor=None, validate=None, clock=None, policy=None, **device):
    facts = ready(max_queue=max_queue)
    scheduler = Scheduler(
        pool=BlockPool(blocks), policy=policy or FcfsPolicy(), policy_name="fcfs", block_size=BLOCK,
        max_sequences=8, max_batch_tokens=16, max_length=facts.max_length, max_queue=max_queue, prefix_caching=True,
    )  # fmt: skip
    if executor is None:
        executor = SimulatedExecutor(
            num_blocks=blocks, block_size=BLOCK, depth=depth, max_batch_tokens=16, vocab_size=VOCAB, **device
        )
    return EngineCore(
        scheduler=scheduler,
        executor=executor,
        ready=facts,
        root=lambda adapter, salt: root_hash("", "float32", adapter, salt),
        validate=validate,
        clock=clock or time.monotonic,
    )


def submit(first_id, prompt=(1, 2, 3), max_tokens=5, seed=0, stop_ids=(), arrival=0.0, **params):
    chosen = SamplingParams(max_tokens=max_tokens, **params)
    return Submit(first_id, [*prompt], chosen, [*stop_ids], [], [], seed, max_tokens, 0, arrival, None, None)


def collect(core, steps=1000):
    """Run until idle: outputs by id, and the other messages."""
    outputs, others = {}, []
    for _ in range(steps):
        for message in core.step():
            if isinstance(message, Outputs):
                for output in message.outputs:
                    outputs.setdefault(output.id, []).append(output)
            elif not isinstance(message, Beat):
                others.append(message)
        if core.failure is not None or not core.busy:
            return outputs, others
    raise AssertionError("the engine does not come to an end")


def tokens(outputs):
    return [token for output in outputs for token in output.token_ids]


def rejected(core, message):
    core.handle(message)
    _, others = collect(core)
    assert [type(other) for other in others] == [Rejected]
    assert others[0].id == message.id
    return restore(others[0].failure)


def test_one_request():
    core = make()
    core.handle(submit(7, prompt=[1, 2, 3], max_tokens=4, seed=9))
    outputs, others = collect(core)
    assert tokens(outputs[7]) == expected_answer([1, 2, 3], SamplingParams(), max_tokens=4, seed=9)
    assert [output.finish_reason for output in outputs[7]] == [None, None, None, "length"]
    assert outputs[7][0].scheduled_at is not None
    assert outputs[7][1].scheduled_at is None
    assert others == []


traces = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
        st.integers(1, 12),
        st.integers(0, 2**63 - 1),
        st.integers(1, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(traces, st.integers(0, 3), st.integers(12, 60))
def test_overlap_changes_nothing(trace, depth, blocks):
    """With any number of steps in flight, and preemptions, each request gets the one right answer."""
    core = make(depth=depth, blocks=blocks)
    expected, next_id = {}, 0
    for prompt, max_tokens, seed, n, stops in trace:
        stop_ids = [5, 6, 7] if stops else []
        core.handle(submit(next_id, prompt, max_tokens, seed, stop_ids, n=n))
        for index in range(n):
            expected[next_id + index] = expected_answer(
                prompt, SamplingParams(), max_tokens=max_tokens, stop_ids=stop_ids, seed=(seed + index) % 2**63
            )
        next_id += n
        core.step()
    found, others = collect(core)
    assert others == []
    late = {key: tokens(outputs) for key, outputs in found.items()}
    for key, answer in expected.items():
        assert answer[len(answer) - len(late.get(key, [])) :] == late.get(key, [])
    core._scheduler.check()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_depth_is_how_many_steps_fly(depth):
    launched, read = [], []

    class Step:
        def __init__(self, pending):
            self.pending = pending

        def result(self):
            result = self.pending.result()
            read.append((result.number, len(launched)))
            return result

    class Recorder(SimulatedExecutor):
        def launch(self, plan: StepPlan):
            launched.append(plan.number)
            return Step(super().launch(plan))

    core = make(executor=Recorder(num_blocks=100, block_size=BLOCK, depth=depth, vocab_size=VOCAB))
    core.handle(submit(1, max_tokens=10))
    collect(core)
    in_steady_state = [ahead - number for number, ahead in read if number <= 10 - depth]
    assert set(in_steady_state) == {depth}


def test_bad_requests_hurt_nobody():
    def validate(params):
        if params.extra and "bad" in params.extra:
            raise RequestError("bad is bad.", param="extra")
        if params.extra and "bug" in params.extra:
            raise KeyError("bug")

    core = make(validate=validate)
    core.handle(submit(1, max_tokens=20))
    core.step()
    cases = [
        (submit(10, prompt=[1, VOCAB]), "prompt"),
        (submit(11, prompt=[-1]), "prompt"),
        (submit(12, prompt=[]), None),
        (submit(13, prompt=[1] * 200), "prompt"),
        (submit(14, stop_token_ids=[VOCAB]), "stop_token_ids"),
        (submit(15, stop_ids=[VOCAB]), "stop_token_ids"),
        (submit(16, logit_bias={VOCAB: 1.0}), "logit_bias"),
        (msgspec.structs.replace(submit(17), bad_word_ids=[[1, VOCAB]]), "bad_words"),
        (submit(18, extra={"bad": 1}), "extra"),
        (msgspec.structs.replace(submit(19), max_tokens=0), None),
    ]
    for message, _ in cases:
        core.handle(message)
    core.handle(submit(20, extra={"bug": 1}))
    core.handle(submit(1, max_tokens=3))
    outputs, others = collect(core)
    errors = {message.id: restore(message.failure) for message in others}
    for message, param in cases:
        assert type(errors[message.id]) is RequestError
        assert errors[message.id].status == 400
        assert param in (None, errors[message.id].param)
    assert (errors[20].status, errors[20].code) == (500, "internal_error")
    assert errors[1].status == 500  # the id is in use: ours to get right
    assert len(tokens(outputs[1])) == 19
    assert core.failure is None


def test_request_for_several_answers_is_taken_whole_or_not_at_all():
    core = make(max_queue=3)
    error = rejected(core, submit(1, n=4))
    assert type(error) is OverloadedError
    assert core.stats().running == core.stats().waiting == 0
    core.handle(submit(10, n=3))
    outputs, _ = collect(core)
    assert {key: len(tokens(found)) for key, found in outputs.items()} == {10: 5, 11: 5, 12: 5}


def test_rows_that_fail_end_alone():
    core = make(poison=13)
    core.handle(submit(1, prompt=[1, 13]))
    core.handle(submit(2, prompt=[1, 2]))
    outputs, others = collect(core)
    assert outputs[1][-1].finish_reason == "error"
    assert "not finite" in outputs[1][-1].error
    assert 2 not in outputs or outputs[2][-1].finish_reason in ("length", "error")
    assert others == []


def test_abort_takes_effect_in_the_next_step():
    core = make(depth=1)
    core.handle(submit(1, max_tokens=100))
    core.handle(submit(2, max_tokens=10))
    for _ in range(4):
        core.step()
    core.handle(Abort([1, 999]))
    assert core.stats().running == 1
    outputs, _ = collect(core)
    assert 1 not in outputs
    assert outputs[2][-1].finish_reason == "length"
    core._scheduler.check()
    assert core.stats().used_blocks == 0
    assert core._scheduled_at == {}


@pytest.mark.parametrize("depth", [0, 1])
def test_executor_failure_ends_the_engine(depth, caplog):
    class Burning(SimulatedExecutor):
        def launch(self, plan):
            if plan.number == 3:
                raise RuntimeError("on fire")
            return super().launch(plan)

    core = make(executor=Burning(num_blocks=100, block_size=BLOCK, depth=depth, vocab_size=VOCAB))
    core.handle(submit(1))
    _, others = collect(core)
    assert [type(message) for message in others] == [Fatal]
    error = restore(others[0].failure)
    assert (type(error), str(error)) == (EngineDeadError, "RuntimeError: on fire")
    assert "on fire" in caplog.text
    assert core.step() == []
    core.handle(submit(2))
    assert core.step() == []


def test_interrupt_in_a_step_ends_the_engine():
    class Interrupted(SimulatedExecutor):
        def launch(self, plan):
            raise KeyboardInterrupt

    core = make(executor=Interrupted(num_blocks=100, block_size=BLOCK))
    core.handle(submit(1))
    with pytest.raises(KeyboardInterrupt):
        core.step()
    assert isinstance(core.failure, EngineDeadError)


def test_beats_come_at_intervals_and_the_books_are_checked_when_idle(monkeypatch):
    clock = Clock()
    core = make(clock=clock)
    checks = []
    monkeypatch.setattr(core._scheduler, "check", lambda: checks.append(clock.now))

    def beats():
        return [message for message in core.step() if isinstance(message, Beat)]

    assert len(beats()) == 1
    assert beats() == []
    clock.now += BEAT_SECONDS
    assert len(beats()) == 1
    assert checks == []
    core.handle(submit(1, max_tokens=3))
    clock.now += BEAT_SECONDS
    assert beats()[0].stats.running == 1
    collect(core)
    for _ in range(3):
        clock.now += BEAT_SECONDS
        assert beats()[0].stats.generated_tokens == 3
    assert len(checks) == 1


def test_books_that_do_not_balance_end_the_engine(monkeypatch):
    clock = Clock()
    core = make(clock=clock)
    core.handle(submit(1))
    collect(core)

    def check():
        raise AssertionError("block 3 is lost")

    monkeypatch.setattr(core._scheduler, "check", check)
    clock.now += 1
    assert any(isinstance(message, Fatal) for message in core.step())


def test_prompt_logprobs_belong_to_the_first_answer_only():
    core = make()
    core.handle(submit(1, prompt=range(20), n=2, prompt_logprobs=0, logprobs=1))
    outputs, _ = collect(core)
    scores = [score for output in outputs[1] for score in output.prompt_scores or []]
    assert [score.token for score in scores] == [*range(1, 20)]
    assert all(output.prompt_scores is None for output in outputs[2])
    for answer in (1, 2):
        assert [score.token for output in outputs[answer] for score in output.scores or []] == tokens(
            outputs[answer]
        )


def test_second_request_finds_the_prefix_until_it_is_reset():
    core = make()
    core.handle(submit(1, prompt=range(20)))
    collect(core)
    core.handle(submit(2, prompt=range(20)))
    assert collect(core)[0][2][0].cached_tokens == 16
    core.handle(ResetPrefixCache())
    core.handle(submit(3, prompt=range(20)))
    assert collect(core)[0][3][0].cached_tokens == 0
    salted = msgspec.structs.replace(submit(4, prompt=range(20)), cache_salt="other")
    core.handle(salted)
    assert collect(core)[0][4][0].cached_tokens == 0


def test_policy_that_holds_everything_back_does_not_spin():
    class Closed(FcfsPolicy):
        open = False

        def order(self, requests, load):
            return range(len(requests)) if self.open else ()

    policy = Closed()
    core = make(policy=policy)
    core.handle(submit(1))
    core.step()
    assert 0 < core.patience < 0.1
    policy.open = True
    outputs, _ = collect(core)
    assert len(tokens(outputs[1])) == 5
    assert core.patience == BEAT_SECONDS


class Queues:
    def __init__(self):
        self.inbox, self.outbox, self.waits = queue.SimpleQueue(), queue.SimpleQueue(), []

    def receive(self, timeout):
        self.waits.append(timeout)
        try:
            return [self.inbox.get(timeout=timeout) if timeout else self.inbox.get_nowait()]
        except queue.Empty:
            return []

    def send(self, messages):
        for message in messages:
            self.outbox.put(message)


def test_serve_runs_until_told_to_stop():
    stopped = threading.Event()

    class Stoppable(SimulatedExecutor):
        def stop(self):
            stopped.set()

    channel = Queues()
    core = make(executor=Stoppable(num_blocks=100, block_size=BLOCK, vocab_size=VOCAB))
    thread = threading.Thread(target=serve, args=(core, channel))
    thread.start()
    channel.inbox.put(submit(1))
    found = []
    while not found or found[-1].finish_reason is None:
        message = channel.outbox.get(timeout=5)
        if isinstance(message, Outputs):
            found += message.outputs
    channel.inbox.put(Stop())
    thread.join(5)
    assert not thread.is_alive()
    assert stopped.is_set()
    assert len(tokens(found)) == 5


def test_serve_ends_with_the_engine():
    class Broken(SimulatedExecutor):
        def launch(self, plan):
            raise RuntimeError("on fire")

        def stop(self):
            raise RuntimeError("still on fire")

    channel = Queues()
    channel.inbox.put(submit(1))
    serve(make(executor=Broken(num_blocks=100, block_size=BLOCK)), channel)
    assert any(isinstance(channel.outbox.get_nowait(), Fatal) for _ in range(channel.outbox.qsize()))


def test_random_aborts_lose_nothing():
    draw = random.Random(1)
    core = make(depth=1, blocks=40)
    gone, finished = set(), set()
    for number in range(300):
        core.handle(
            submit(number, [draw.randrange(VOCAB) for _ in range(draw.randrange(1, 20))], draw.randrange(1, 9))
        )
        if draw.random() < 0.4:
            victim = draw.randrange(number + 1)
            core.handle(Abort([victim]))
            gone.add(victim)
        for message in core.step():
            if isinstance(message, Outputs):
                finished |= {output.id for output in message.outputs if output.finish_reason}
    outputs, others = collect(core)
    finished |= set(outputs)
    full = {message.id for message in others}
    assert finished | gone | full == set(range(300))
    core._scheduler.check()
    assert core.stats().used_blocks == 0
