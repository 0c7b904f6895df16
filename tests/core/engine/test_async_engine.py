"""``AsyncEngine``, inline and with an engine process, on a simulated device."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from octavo import AsyncEngine, SamplingParams, hookimpl
from octavo.contracts.api import EngineStats
from octavo.errors import (
    CheckpointError,
    ConfigError,
    EngineDeadError,
    NotFoundError,
    OverloadedError,
    PluginError,
    RequestError,
)
from octavo.testing.simulated import expected_answer

LONG = SamplingParams(max_tokens=400, ignore_eos=True, seed=3)


def greedy(max_tokens=6, **more):
    return SamplingParams(max_tokens=max_tokens, seed=3, ignore_eos=True, **more)


def right(prompt, max_tokens=6, seed=3):
    return expected_answer(prompt, SamplingParams(), max_tokens=max_tokens, seed=seed, vocab_size=256)


async def answer(engine, prompt, params, **more):
    """All deltas of a request, as one answer an index: (token ids, text, finish reason)."""
    ids, text, reason = {}, {}, {}
    async for delta in engine.generate(prompt, params, **more):
        ids.setdefault(delta.index, []).extend(delta.token_ids)
        text[delta.index] = text.get(delta.index, "") + delta.text
        reason[delta.index] = delta.finish_reason
    return [(ids[index], text[index], reason[index]) for index in sorted(ids)]


async def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


@pytest.fixture(params=[True, False], ids=["inline", "process"])
def arguments(simulated, request):
    return lambda **options: {**simulated(**options), "inline": request.param}


def run(engine, work):
    async def main():
        async with engine:
            return await asyncio.wait_for(work(engine), 60)

    return asyncio.run(main())


def test_answers(arguments):
    async def work(engine):
        many = await asyncio.gather(*(answer(engine, [number + 3], greedy()) for number in range(20)))
        assert [found[0][0] for found in many] == [right([number + 3]) for number in range(20)]
        assert {found[0][2] for found in many} == {"length"}
        several = await answer(engine, "hello", greedy(n=3))
        prompt = await engine.encode("hello")
        assert [found[0] for found in several] == [right(prompt, seed=3 + index) for index in range(3)]
        assert several[0][1] == await engine.decode(several[0][0], skip_special_tokens=True)
        deltas = [delta async for delta in engine.generate("hello", greedy(logprobs=1, prompt_logprobs=0))]
        assert deltas[0].prompt.token_ids == prompt
        assert [entry.token_id for entry in deltas[0].prompt.logprobs[1:]] == prompt[1:]
        assert all([e.token_id for e in delta.logprobs] == delta.token_ids for delta in deltas)

    run(AsyncEngine(**arguments()), work)


def test_facts(arguments, model):
    async def work(engine):
        assert (engine.model_name, engine.max_length, engine.vocab_size) == ("model", 512, 320)
        assert engine.has_chat_template
        assert dict(engine.default_sampling) == {}
        served = engine.models()
        assert [(entry.id, entry.root, entry.parent, entry.max_length) for entry in served] == [
            ("model", str(model), None, 512)
        ]
        ids = await engine.render_chat([{"role": "user", "content": "hi"}])
        assert "user\nhi" in await engine.decode(ids)
        assert await engine.decode(await engine.encode("héllo", add_special_tokens=False)) == "héllo"
        health = engine.health()
        assert (health.alive, health.ready, health.reason) == (True, True, "")
        await answer(engine, [5, 6], greedy())
        await until(lambda: engine.stats().generated_tokens == 6)
        assert engine.stats().prompt_tokens == 2

    run(AsyncEngine(**arguments()), work)


def test_bad_requests_hurt_nobody(arguments):
    async def work(engine):
        good = asyncio.create_task(answer(engine, [5], greedy(50)))
        wrong = [
            ([1, 320], greedy(), "prompt"),
            ([], greedy(), "prompt"),
            ("x" * 100_000, greedy(), "prompt"),
            ([5] * 512, greedy(), "prompt"),
            ([5], greedy(600), "max_tokens"),
            ([5], SamplingParams(stop_token_ids=[320]), "stop_token_ids"),
            ([5], SamplingParams(extra={"x": 1}), "extra"),
            (None, greedy(), "prompt"),
        ]
        for prompt, params, param in wrong:
            with pytest.raises(RequestError) as caught:
                await answer(engine, prompt, params)
            assert caught.value.param == param
        with pytest.raises(RequestError, match="must be SamplingParams"):
            await answer(engine, [5], {"max_tokens": 3})
        with pytest.raises(NotFoundError):
            await answer(engine, [5], greedy(), adapter="sql")
        with pytest.raises(RequestError, match="token id 320"):
            await engine.decode([320])
        assert (await good)[0][0] == right([5], 50)

    run(AsyncEngine(**arguments()), work)


@pytest.mark.parametrize("way", ["close", "cancel", "break"])
def test_leaving_aborts_within_a_step(arguments, way):
    async def work(engine):
        stream = engine.generate([5], LONG)
        await anext(stream)
        if way == "close":
            await stream.aclose()
        elif way == "cancel":
            task = asyncio.create_task(answer(engine, [6], LONG))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await stream.aclose()
        else:
            async for _ in stream:
                break
            del stream
        await until(lambda: engine.stats().steps > 0 and engine.stats().running == 0)
        assert engine.stats().generated_tokens < 390
        assert engine.stats().used_blocks == 0

    run(AsyncEngine(**arguments(step_seconds=0.02)), work)


def test_stop_string_aborts_the_request(arguments):
    async def work(engine):
        text = (await answer(engine, [5], greedy(60)))[0][1]
        stop = text[8:11]
        found = await answer(engine, [5], greedy(500, stop=[stop]))
        assert found[0][1:] == (text[: text.index(stop)], "stop")
        await until(lambda: engine.stats().running == 0)
        assert engine.stats().generated_tokens < 400

    run(AsyncEngine(**arguments(step_seconds=0.01)), work)


def test_slow_consumers_get_merged_deltas(arguments):
    async def work(engine):
        stream = engine.generate([5], greedy(300, n=2, logprobs=0))
        deltas = [await anext(stream)]
        await until(lambda: engine.stats().generated_tokens == 600)
        deltas += [delta async for delta in stream]
        assert len(deltas) <= 4
        for index in (0, 1):
            ids = [token for delta in deltas if delta.index == index for token in delta.token_ids]
            scored = [entry.token_id for delta in deltas if delta.index == index for entry in delta.logprobs]
            assert ids == scored == right([5], 300, seed=3 + index)

    run(AsyncEngine(**arguments()), work)


def test_too_many_requests_are_refused(arguments):
    async def work(engine):
        tasks = [asyncio.create_task(answer(engine, [5], greedy(30))) for _ in range(20)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exception)]
        assert {type(error) for error in refused} == {OverloadedError}
        assert 10 <= len(refused) <= 17
        assert all(result[0][0] == right([5], 30) for result in results if isinstance(result, list))
        assert (await answer(engine, [5], greedy()))[0][0] == right([5])

    run(AsyncEngine(**arguments(max_queue=3, max_sequences=2, step_seconds=0.01)), work)


def test_prefix_cache_reset(arguments):
    async def work(engine):
        async def cached(**more):
            deltas = [delta async for delta in engine.generate([7] * 60, greedy(), **more)]
            return deltas[0].prompt.cached_tokens

        assert [await cached(), await cached(), await cached(cache_salt="mine")] == [0, 48, 0]
        await engine.reset_prefix_cache()
        assert await cached() == 0

    run(AsyncEngine(**arguments()), work)


def test_failing_engine_ends_all_streams(arguments, caplog):
    async def work(engine):
        tasks = [asyncio.create_task(answer(engine, [number + 3], LONG)) for number in range(5)]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineDeadError)
            assert "on fire" in str(result)
        health = engine.health()
        assert (health.alive, health.ready) == (False, False)
        assert "on fire" in health.reason
        for call in (answer(engine, [5], greedy()), engine.encode("a"), engine.reset_prefix_cache()):
            with pytest.raises(EngineDeadError, match="on fire"):
                await call

    run(AsyncEngine(**arguments(fail_at=8, step_seconds=0.02)), work)


@pytest.mark.parametrize(
    ("start", "kind", "text"),
    [("refuse", CheckpointError, "lm_head.weight"), ("break", EngineDeadError, "ZeroDivisionError: a bug")],
)
def test_errors_of_building_are_raised_by_start(arguments, start, kind, text):
    engine = AsyncEngine(**arguments(start=start))
    with pytest.raises(kind, match=text) as caught:
        asyncio.run(engine.start())
    assert type(caught.value) is kind


def test_errors_of_the_text_side_are_raised_by_start(arguments, tmp_path):
    bad = arguments()
    bad["model"] = {"path": str(tmp_path), "loader": "dummy"}
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        asyncio.run(AsyncEngine(**bad).start())
    assert time.monotonic() - started < 4


def test_use_before_start_and_after_stop(arguments):
    async def main():
        engine = AsyncEngine(**arguments(step_seconds=0.01))
        assert engine.health().ready is False
        assert engine.stats() == EngineStats()
        with pytest.raises(ConfigError, match="start"):
            await engine.encode("a")
        async with engine:
            with pytest.raises(ConfigError, match="before"):
                await engine.start()
            task = asyncio.create_task(answer(engine, [5], LONG))
            await asyncio.sleep(0.2)
        with pytest.raises(EngineDeadError, match="stopped"):
            await task
        with pytest.raises(EngineDeadError, match="stopped"):
            await engine.encode("a")
        await engine.stop()

    asyncio.run(main())


def test_requests_while_the_model_loads_are_put_off(arguments):
    async def main():
        engine = AsyncEngine(**arguments())
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="still loading"):
            await answer(engine, [5], greedy())
        assert engine.health().ready is False
        await starting
        assert (await answer(engine, [5], greedy()))[0][0] == right([5])
        await engine.stop()

    asyncio.run(main())


def test_observers(simulated):
    class Watch:
        def __init__(self):
            self.events = []

        @hookimpl
        def octavo_engine_started(self, ctx):
            self.events.append("started")

        @hookimpl
        def octavo_engine_stopping(self):
            self.events.append("stopping")

        @hookimpl
        def octavo_request_finished(self, summary):
            self.events.append(summary)
            assert threading.current_thread().name == "octavo-observers"
            raise RuntimeError("observers may fail")

    watch = Watch()

    async def work(engine):
        await answer(engine, [5], greedy(), request_id="client-1")
        stream = engine.generate([5], LONG)
        await anext(stream)
        await stream.aclose()
        await until(lambda: len(watch.events) == 3)
        finished, left = watch.events[1:]
        assert (finished.request_id, finished.finish_reason, finished.output_tokens) == ("client-1", "length", 6)
        assert finished.queue_time <= finished.time_to_first_token <= finished.duration
        assert (left.request_id, left.finish_reason) == ("request-1", "abort")

    run(AsyncEngine(**{**simulated(), "plugins": [watch], "inline": True}), work)
    assert watch.events[0] == "started"
    assert watch.events[-1] == "stopping"


def test_objects_need_an_inline_engine(simulated):
    class Observer:
        @hookimpl
        def octavo_engine_stopping(self):
            """Only here to be there."""

    with pytest.raises(PluginError, match="inline"):
        AsyncEngine(**{**simulated(), "plugins": [Observer()]})


def test_killed_engine_ends_all_streams_at_once(simulated):
    async def work(engine):
        tasks = [asyncio.create_task(answer(engine, [number + 3], LONG)) for number in range(5)]
        await until(lambda: engine.stats().running == 5)
        killed = time.monotonic()
        os.kill(engine.link.pid, signal.SIGKILL)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineDeadError)
            assert "SIGKILL" in str(result)
        assert time.monotonic() - killed < 1
        assert engine.health().alive is False

    run(AsyncEngine(**simulated(step_seconds=0.02)), work)


def test_engine_that_dies_while_starting(simulated):
    with pytest.raises(EngineDeadError, match="exit status 7"):
        asyncio.run(AsyncEngine(**simulated(start="die")).start())


def test_stop_ends_a_process_that_does_not_listen(simulated):
    async def main():
        engine = AsyncEngine(**simulated())
        await engine.start()
        pid = engine.link.pid
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        await engine.stop()
        assert time.monotonic() - started < 12
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.2])
def test_start_can_be_cancelled(simulated, seconds):
    async def main():
        engine = AsyncEngine(**simulated())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.start(), seconds)
        return engine.link

    link = asyncio.run(main())
    assert link.pid is None or not _alive(link.pid)
    assert link.folder is None or not link.folder.exists()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


PARENT = """
import asyncio, sys
from octavo import AsyncEngine

async def main():
    engine = AsyncEngine(**{arguments!r})
    await engine.start()
    print(engine.link.pid, engine.link.folder, flush=True)
    {then}

asyncio.run(main())
"""


def parent(arguments, then):
    source = textwrap.dedent(PARENT).format(arguments=arguments, then=then)
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    words = process.stdout.readline().split()
    return process, int(words[0]), words[1]


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_engine_goes_with_its_parent(simulated, way):
    process, child, folder = parent(simulated(), "await asyncio.sleep(60)")
    assert _alive(child)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    process.send_signal(way)
    process.wait(10)
    process.stdout.close()
    asyncio.run(until(lambda: not _alive(child)))
    assert not os.path.exists(folder)


def test_engine_goes_with_a_parent_whose_fork_lives_on(simulated):
    """The fork holds the pipe open, so that the pipe alone would not tell."""
    fork = "import os, time; print(os.fork() or os.execvp('sleep', ['sleep', '30']), flush=True); time.sleep(60)"
    process, child, _ = parent(simulated(), fork)
    sleeper = int(process.stdout.readline())
    process.kill()
    process.wait(10)
    process.stdout.close()
    try:
        asyncio.run(until(lambda: not _alive(child)))
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_parent_that_forgets_to_stop(simulated):
    process, child, _ = parent(simulated(), "pass")
    process.wait(10)
    process.stdout.close()
    asyncio.run(until(lambda: not _alive(child)))


def test_the_api_process_does_not_import_torch(simulated):
    then = (
        "print(sum([len(d.token_ids) async for d in engine.generate('a', __import__('octavo').SamplingParams())]), "
        "[m for m in ('torch', 'transformers', 'triton') if m in sys.modules], flush=True); await engine.stop()"
    )
    process, _, _ = parent(simulated(), then)
    output, _ = process.communicate(timeout=30)
    count, _, loaded = output.partition(" ")
    assert int(count) > 0
    assert loaded.strip() == "[]"
