"""Grammars in the loop, on a simulated device whose right answers are known: with overlap, preemption, drafts."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cache.blocks import BlockPool
from octavo.config.schema import StructuredLimits
from octavo.contracts.proposer import Draft
from octavo.engine.constraints import Constraint
from octavo.engine.core import EngineCore
from octavo.engine.grammars import Built, Grammars
from octavo.engine.messages import Abort, Outputs, Ready, Rejected, Submit
from octavo.engine.structured import StructuredEngine
from octavo.errors import OverloadedError, RequestError
from octavo.params import SamplingParams
from octavo.records import Context, DeviceProfile, ModelProfile
from octavo.scheduling.policies import FcfsPolicy
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.speculator import Speculator
from octavo.structured import StructuredOutputs
from octavo.testing.grammars import EOS, VOCABULARY, NamedGrammars, allowed
from octavo.testing.simulated import SimulatedExecutor, expected_answer

BLOCK, LENGTH = 4, 120


def make(depth=0, blocks=60, proposer=None, backend=None, max_queue=50, **limits):
    model = ModelProfile(
        path="", name="simulated", format="config", architecture="", config={}, hidden_size=0, num_layers=0,
        num_heads=0, num_kv_heads=0, head_dim=0, vocab_size=64, max_length=LENGTH, dtype="float32",
        tied_embeddings=True, eos_ids=(EOS,), quantization=None, generation={}, digest="",
    )  # fmt: skip
    device = DeviceProfile(type="cpu", index=0, name="", capability=None, total_memory=0, free_memory=0, cores=1)
    context = Context(
        model=model, device=device, dtype="float32", kv_dtype="float32", block_size=BLOCK, max_length=LENGTH,
        max_sequences=6, max_batch_tokens=16,
    )  # fmt: skip
    scheduler = Scheduler(
        pool=BlockPool(blocks), policy=FcfsPolicy(), policy_name="fcfs", block_size=BLOCK, max_sequences=6,
        max_batch_tokens=16, max_length=LENGTH, max_queue=max_queue, prefix_caching=True,
        speculator=None if proposer is None else Speculator(proposer, "test", 64, 6),
    )  # fmt: skip
    executor = SimulatedExecutor(num_blocks=blocks, block_size=BLOCK, depth=depth, max_batch_tokens=16)
    built = Built(backend or NamedGrammars(), VOCABULARY)
    return EngineCore(
        scheduler=scheduler, executor=executor, ready=Ready(context, 0, LENGTH, max_queue, []),
        root=lambda digest, salt: b"root" + (salt or "").encode(),
        structured=StructuredEngine(Grammars(lambda: built, StructuredLimits(**limits))),
    )  # fmt: skip


def submit(number, grammar=None, prompt=(1, 2, 3), after="", **params):
    if grammar is not None:
        params["structured_outputs"] = StructuredOutputs(regex=grammar, after=after)
    chosen = SamplingParams(**{"max_tokens": 20, **params})
    eos = [] if chosen.ignore_eos else [EOS]
    stops = [*eos, *chosen.stop_token_ids]
    return Submit(
        number, list(prompt), chosen, stops, eos, [], number * 31, chosen.max_tokens, 0, float(number), None, None
    )


def run(core, seconds=20.0):
    """Until nothing is left: by id the tokens, the reason, and the error; and the refusals by id."""
    answers, refused, ends = {}, {}, time.monotonic() + seconds
    while core.busy or core._structured.waiting:
        assert time.monotonic() < ends, "the engine does not finish"
        for message in core.step():
            if isinstance(message, Outputs):
                for output in message.outputs:
                    tokens, reason, _ = answers.get(output.id, ([], None, None))
                    assert reason is None, "nothing comes after the end"
                    answers[output.id] = (tokens + output.token_ids, output.finish_reason, output.error)
            elif isinstance(message, Rejected):
                refused[message.id] = message.failure
        assert core.failure is None, core.failure
    core._scheduler.check()
    return answers, refused


def right(request, index=0):
    """The answer, from the request alone."""
    wanted = request.params.structured_outputs
    if wanted is None:
        return expected(request, index, None)
    return expected(request, index, lambda said: allowed(wanted.regex, said))


def expected(request, index, may):
    return expected_answer(
        request.prompt_ids, request.params, max_tokens=request.max_tokens, stop_ids=request.stop_ids,
        seed=request.seed + index, allowed=may,
    )  # fmt: skip


class Guesser:
    """Drafts that are often right: it knows how the simulated device works, and errs now and then."""

    max_tokens = 4

    def __init__(self):
        self.rows, self.calls = {}, 0

    def reserve(self, row, tokens):
        self.rows[row] = list(tokens)

    def release(self, row):
        self.rows.pop(row, None)

    def propose(self, rows):
        self.calls += 1
        tokens = np.zeros((len(rows), 4), np.int64)
        for place, row in enumerate(rows):
            self.rows[row.row] += row.fresh
            tokens[place] = [(self.rows[row.row][-1] + step * (self.calls % 3)) % 64 for step in range(4)]
        return Draft(tokens, np.array([min(4, row.limit) for row in rows], np.int64))


requests = st.lists(
    st.tuples(
        st.sampled_from([None, "even", "climb", "any"]),
        st.lists(st.integers(0, 60), min_size=1, max_size=20),
        st.integers(1, 25),
        st.integers(0, 8),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=120, deadline=None)
@given(requests, st.sampled_from([0, 1, 2]), st.integers(16, 60), st.booleans())
def test_answers_are_right_whatever_else_runs(wanted, depth, blocks, drafts):
    core = make(depth=depth, blocks=blocks, proposer=Guesser() if drafts else None)
    submits, number = [], 1
    for grammar, prompt, max_tokens, min_tokens, n in wanted:
        request = submit(
            number, grammar, prompt, max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), n=n
        )
        if len(prompt) + max_tokens < (blocks - 1) * BLOCK:
            submits.append(request)
            number += n
    for request in submits:
        core.handle(request)
    answers, refused = run(core)
    assert not refused
    for request in submits:
        for index in range(request.params.n):
            tokens, reason, error = answers[request.id + index]
            assert error is None
            assert tokens == right(request, index)
            assert reason == ("stop" if EOS in tokens else "length")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("params", [{}, {"ignore_eos": True}, {"min_tokens": 12}], ids=str)
def test_an_answer_ends_when_its_grammar_allows_nothing_more(depth, params):
    core = make(depth)
    core.handle(submit(1, "five", **params))
    core.handle(submit(2, "late", **params))
    core.handle(submit(3, None))
    answers, _ = run(core)
    tokens, reason, error = answers[1]
    assert (len(tokens), reason, error) == (5, "stop", None)
    assert all(40 <= token < 60 for token in tokens)
    tokens, reason, error = answers[2]
    assert (tokens[:2], reason, error) == ([token for token in tokens if token < 10][:2], "stop", None)
    assert answers[3][0] == expected(submit(3, None), 0, None)


def test_an_end_that_is_not_wanted_yet_is_barred():
    core = make()
    core.handle(submit(1, "even", min_tokens=15, max_tokens=20))
    core.handle(submit(2, "even", ignore_eos=True, max_tokens=20))
    answers, _ = run(core)
    assert len(answers[1][0]) >= 15
    assert EOS not in answers[1][0][:15]
    assert (len(answers[2][0]), answers[2][1]) == (20, "length")
    assert EOS not in answers[2][0]


@pytest.mark.parametrize("depth", [0, 1])
def test_the_form_begins_after_a_text(depth):
    """``after`` is found in the bytes, however they are divided into tokens."""
    request = submit(1, "five", max_tokens=60, after="><7")
    plain = expected(submit(1, None, max_tokens=60), 0, None)
    place = next(place for place, token in enumerate(plain) if place and VOCABULARY.tokens[token][:2] == b"<7")
    core = make(depth)
    core.handle(request)
    tokens, reason, _ = run(core)[0][1]
    assert tokens[: place + 1] == plain[: place + 1]
    assert all(40 <= token < 60 for token in tokens[place + 1 :])
    assert (len(tokens), reason) == (place + 6, "stop")


def test_drafts_stop_before_the_form_begins():
    backend = NamedGrammars()
    built = Built(backend, VOCABULARY)
    grammar = backend.compile(StructuredOutputs(regex="even"))
    constraint = Constraint(built, grammar, StructuredOutputs(regex="even", after="<7>"), True)
    assert constraint.fits([5, 6, 7, 8]) == 2
    assert list(constraint.constrained([5, 6])) == []
    assert not constraint.active
    assert list(constraint.constrained([7, 8])) == [8]
    assert constraint.active
    assert constraint.fits([2, 4, 5]) == 2


def test_a_slow_grammar_holds_nobody_up():
    backend = NamedGrammars()
    core = make(backend=backend)
    core.handle(submit(1, "slow"))
    core.handle(submit(2, "even"))
    core.handle(submit(3))
    done, ends = set(), time.monotonic() + 20
    while done != {2, 3}:
        assert time.monotonic() < ends
        for message in core.step():
            if isinstance(message, Outputs):
                done |= {output.id for output in message.outputs if output.finish_reason}
    assert core._structured.waiting
    assert core.patience < 0.1
    backend.gate.set()
    assert run(core)[0][1][1] is not None


def test_a_bad_grammar_costs_its_own_request():
    core = make()
    for number, grammar in enumerate(("bad", "even", "fail", None), 1):
        core.handle(submit(number, grammar))
    answers, refused = run(core)
    assert refused.keys() == {1}
    assert refused[1].message == "structured_outputs.regex can't be used: bad."
    assert refused[1].attributes["status"] == 400
    assert answers[3][1:] == ("error", "the grammar gives up")
    for number, grammar in ((2, "even"), (4, None)):
        assert answers[number][0] == right(submit(number, grammar))


def test_a_backend_that_breaks_costs_the_rows_that_use_it():
    core = make()
    core.handle(submit(1, "boom"))
    core.handle(submit(2))
    answers, _ = run(core)
    assert answers[1][1] == "error"
    assert "ZeroDivisionError: a bug" in answers[1][2]
    assert answers[2][0] == right(submit(2))


def test_grammars_are_compiled_once_and_the_oldest_forgotten():
    backend = NamedGrammars()
    core = make(backend=backend, cached=2)
    for number, grammar in enumerate(("even", "even", "five", "climb", "even"), 1):
        core.handle(submit(number, grammar))
        run(core)
    assert backend.compiled == ["even", "five", "climb", "even"]


def test_what_takes_too_long_is_refused():
    backend = NamedGrammars()
    core = make(backend=backend, compile_timeout=0.05, compile_threads=1)
    core.handle(submit(1, "slow"))
    core.handle(submit(2, "even"))
    try:
        _, refused = run(core)
    finally:
        backend.gate.set()
    assert "within 0.05 seconds" in refused[1].message
    assert refused[1].attributes["status"] == 400
    assert refused[2].kind == OverloadedError.__name__  # it was never looked at


def test_waiting_has_a_limit_and_an_abort_ends_it():
    backend = NamedGrammars()
    core = make(backend=backend, max_queue=1)
    core.handle(submit(1, "slow", n=2))
    core.handle(submit(5, "slow"))
    (refusal,) = core.step()[:1]
    assert isinstance(refusal, Rejected)
    assert refusal.failure.kind == OverloadedError.__name__
    core.handle(Abort([1]))
    assert core._structured.waiting  # one of its answers is still wanted
    core.handle(Abort([1, 2]))
    assert not core._structured.waiting
    backend.gate.set()
    assert run(core) == ({}, {})


def test_limits_are_checked_again_and_a_wait_ends_in_the_refusal():
    core = make(max_bytes=4)
    with pytest.raises(RequestError, match="is 5 bytes long; this server takes 4"):
        core.check(submit(1, "climb"))
    with pytest.raises(RequestError, match=": bad"):
        core.prepare(submit(1, "bad"))
    core.prepare(submit(1, "even"))


def test_a_step_is_launched_before_the_last_is_read_and_sampled_after():
    """With overlap, rows with a grammar cost no step: the device has work while the host makes masks."""
    events = []

    class Logged(SimulatedExecutor):
        def launch(self, plan):
            step, number = super().launch(plan), plan.number
            events.append(f"launch {number}")
            sample, result = step.sample, step.result

            def sample_logged(masks):
                events.append(f"sample {number}")
                sample(masks)

            def result_logged():
                events.append(f"read {number}")
                return result()

            return SimpleNamespace(sample=sample_logged, result=result_logged)

    steps = {}
    for grammar in ("any", None):
        events.clear()
        core = make()
        core._executor = Logged(num_blocks=60, block_size=BLOCK, depth=1, max_batch_tokens=16)
        core._depth = 1
        core.handle(submit(1, grammar, max_tokens=5, ignore_eos=True))
        run(core)
        steps[grammar] = [event for event in events if event.startswith("launch")]
        if grammar:
            middle = events[events.index("launch 2") : events.index("launch 4")]
            assert middle == ["launch 2", "read 1", "sample 2", "launch 3", "read 2", "sample 3"]
    assert len(steps["any"]) == len(steps[None])
