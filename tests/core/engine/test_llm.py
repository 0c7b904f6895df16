"""``LLM``: the loop in the caller's thread."""

from __future__ import annotations

import signal
import threading

import pytest

from octavo import LLM, SamplingParams, hookimpl
from octavo.errors import CheckpointError, ConfigError, EngineDeadError, OverloadedError, RequestError
from octavo.testing.simulated import expected_answer

GREEDY = SamplingParams(temperature=0, max_tokens=6, seed=3, ignore_eos=True)


@pytest.fixture
def llm(simulated):
    with LLM(**simulated()) as engine:
        yield engine


def expected(engine, prompt, params=GREEDY, seed=3):
    ids = engine.encode(prompt) if isinstance(prompt, str) else prompt
    return expected_answer(ids, params, max_tokens=params.max_tokens, seed=seed, vocab_size=256)


def test_prompts_in_every_form(llm):
    one = llm.generate("hello", GREEDY)
    assert len(one) == 1
    assert (one[0].prompt, one[0].prompt_token_ids, one[0].finished) == ("hello", llm.encode("hello"), True)
    answer = one[0].outputs[0]
    assert answer.token_ids == expected(llm, "hello")
    assert answer.text == llm.decode(answer.token_ids, skip_special_tokens=True)
    assert answer.finish_reason == "length"
    assert llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids == expected(llm, [5, 6])
    assert llm.generate([5, 6], GREEDY)[0].prompt is None
    mixed = llm.generate(["hello", [5, 6], "b"], GREEDY)
    assert [output.outputs[0].token_ids for output in mixed] == [expected(llm, p) for p in ("hello", [5, 6], "b")]
    assert llm.generate([], GREEDY) == []


def test_params_for_each_prompt(llm):
    each = [SamplingParams(max_tokens=count, seed=3, ignore_eos=True) for count in (1, 4)]
    outputs = llm.generate(["a", "b"], each)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 4]
    with pytest.raises(RequestError, match="2 prompts and 1 sampling"):
        llm.generate(["a", "b"], each[:1])
    with pytest.raises(RequestError, match="must be SamplingParams, not dict"):
        llm.generate(["a"], [{"max_tokens": 3}])


def test_several_answers_draw_from_consecutive_seeds(llm):
    params = SamplingParams(n=3, max_tokens=4, seed=10, ignore_eos=True)
    output = llm.generate("hello", params)[0]
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    for answer in output.outputs:
        assert answer.token_ids == expected(llm, "hello", params, seed=10 + answer.index)


def test_one_wrong_prompt_stops_the_list_before_any_work(llm):
    with pytest.raises(RequestError, match="token id 999"):
        llm.generate(["good", [1, 999]], GREEDY)
    assert llm.stats().steps == 0
    assert llm.generate("good", GREEDY)[0].finished


def test_more_prompts_than_the_queue_holds(simulated):
    with LLM(**simulated(max_queue=3, max_sequences=2)) as llm:
        outputs = llm.generate([[index + 3] for index in range(20)], GREEDY)
        assert [output.outputs[0].token_ids for output in outputs] == [expected(llm, [i + 3]) for i in range(20)]
        with pytest.raises(OverloadedError):
            llm.generate("a", SamplingParams(n=4))
        assert llm.generate("a", GREEDY)[0].finished


def test_stop_string_ends_early_and_frees_the_engine(llm):
    params = SamplingParams(max_tokens=200, seed=3, ignore_eos=True)
    text = llm.generate("hello", params)[0].outputs[0].text
    stop = text[20:23]
    assert "\ufffd" not in stop or text.index(stop) <= 20
    answer = llm.generate("hello", SamplingParams(max_tokens=200, seed=3, ignore_eos=True, stop=stop))[0].outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[: text.index(stop)], "stop", stop)
    assert len(answer.token_ids) < 200
    assert llm.stats().used_blocks == 0


def test_logprobs(llm):
    params = SamplingParams(max_tokens=3, seed=3, ignore_eos=True, logprobs=1, prompt_logprobs=0)
    output = llm.generate("hello", params)[0]
    answer = output.outputs[0]
    assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
    assert all(entry.token == llm.decode([entry.token_id]) for entry in answer.logprobs)
    assert output.prompt_logprobs[0] is None
    assert [entry.token_id for entry in output.prompt_logprobs[1:]] == output.prompt_token_ids[1:]


def test_prefix_cache(llm):
    prompt = "a long beginning that fills blocks, " * 3
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens >= 16
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


def test_chat(llm):
    conversation = [{"role": "user", "content": "hi"}]
    single = llm.chat(conversation, GREEDY)
    assert len(single) == 1
    assert "user\nhi" in llm.decode(single[0].prompt_token_ids)
    several = llm.chat([conversation, conversation], GREEDY)
    assert [output.prompt_token_ids for output in several] == [single[0].prompt_token_ids] * 2
    with pytest.raises(RequestError, match="role"):
        llm.chat([conversation, [{"content": "x"}]], GREEDY)


def test_defaults(llm):
    assert len(llm.generate("hello", SamplingParams(ignore_eos=True))[0].outputs[0].token_ids) == 16
    answer = llm.chat([{"role": "user", "content": "hi"}])[0].outputs[0]
    assert answer.finish_reason == "stop" or len(answer.token_ids) > 16


def test_metrics_and_figures(llm):
    output = llm.generate("hello", GREEDY)[0]
    assert 0 <= output.metrics.queue_time <= output.metrics.time_to_first_token <= output.metrics.duration
    stats = llm.stats()
    assert (stats.prompt_tokens, stats.generated_tokens) == (len(output.prompt_token_ids), 6)
    assert "scripted" in llm.explain().text()


def test_text_and_ids(llm):
    assert llm.decode(llm.encode("héllo", add_special_tokens=False)) == "héllo"
    with pytest.raises(RequestError, match="token id 320"):
        llm.decode([320])
    with pytest.raises(RequestError, match="token_ids must be"):
        llm.decode(["a"])


def test_failing_executor(simulated):
    llm = LLM(**simulated(fail_at=2))
    with pytest.raises(EngineDeadError, match="on fire") as caught:
        llm.generate("hello", GREEDY)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(EngineDeadError, match="on fire"):
        llm.generate("hello", GREEDY)


def test_closed_engine(simulated):
    llm = LLM(**simulated())
    llm.close()
    llm.close()
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate("hello", GREEDY)


def test_errors_of_building(simulated):
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        LLM(**simulated(start="refuse"))
    arguments = simulated(blocks=4)
    arguments["model"]["max_length"] = 500
    with pytest.raises(ConfigError, match="max_length"):
        LLM(**arguments)


def test_context_is_what_the_cache_holds(simulated, caplog):
    with LLM(**simulated(blocks=5)) as llm:
        assert llm.max_length == 64
        assert "64 tokens" in caplog.text
        with pytest.raises(RequestError, match="maximum context length is 64 tokens, however the prompt has 64"):
            llm.generate([[5] * 64], GREEDY)


def test_sections_go_over_the_configuration(simulated, tmp_path, model):
    file = tmp_path / "octavo.yaml"
    plugin = simulated()["config"]["plugins"]["load"][0]
    file.write_text(
        f"model: {{path: {model}, loader: dummy, max_length: 100}}\n"
        f"plugins: {{load: ['{plugin}']}}\nexecutor: scripted\ncache: {{blocks: 64, prefix_caching: false}}\n"
    )
    with LLM(config=file, cache={"blocks": 32}) as llm:
        assert llm.max_length == 100
        assert llm.stats().total_blocks == 31
        assert llm.config.cache.prefix_caching is False
    with LLM(str(model), config=file) as llm:
        assert llm.config.model.loader == "dummy"


def test_plugins_given_as_objects(simulated):
    class Watch:
        def __init__(self):
            self.events, self.told = [], threading.Event()

        @hookimpl
        def octavo_engine_started(self, ctx):
            self.events.append(("started", ctx.model.vocab_size))

        @hookimpl
        def octavo_engine_stopping(self):
            self.events.append(("stopping", None))

        @hookimpl
        def octavo_request_finished(self, summary):
            self.events.append((summary.finish_reason, summary.output_tokens, threading.current_thread().name))
            self.told.set()

    watch = Watch()
    with LLM(**{**simulated(), "plugins": [watch]}) as llm:
        llm.generate("hello", GREEDY)
        assert watch.told.wait(5)
    assert watch.events == [("started", 320), ("length", 6, "octavo-observers"), ("stopping", None)]


def test_selected_adapters_must_exist(simulated):
    class Select:
        @hookimpl
        def octavo_select_adapter(self, arrival, adapters):
            assert adapters == ()

    with LLM(**{**simulated(), "plugins": [Select()]}) as llm:
        assert llm.generate("hello", GREEDY)[0].finished


def test_interrupt_takes_effect_between_steps(simulated):
    with LLM(**simulated(step_seconds=0.01)) as llm:
        timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate("hello", SamplingParams(max_tokens=400, ignore_eos=True))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert llm.stats().running == 0
        assert llm.generate("hello", GREEDY)[0].outputs[0].token_ids == expected(llm, "hello")


def test_calls_from_several_threads_take_turns(llm):
    results = {}

    def work(number):
        results[number] = llm.generate([[number + 3]] * 3, GREEDY)[2].outputs[0].token_ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: expected(llm, [number + 3]) for number in range(6)}


def test_progress_bar(llm, capsys):
    llm.generate(["a", "b"], GREEDY, use_tqdm=True)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("depth", [0, 1])
def test_depth_changes_nothing(simulated, depth):
    with LLM(**simulated(depth=depth)) as llm:
        outputs = llm.generate([[5], [6, 7], [8] * 40], GREEDY)
        assert [o.outputs[0].token_ids for o in outputs] == [expected(llm, p) for p in ([5], [6, 7], [8] * 40)]


def test_model_without_tokenizer_takes_ids(simulated, model, tmp_path):
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    arguments = simulated()
    arguments["model"] = {"path": str(tmp_path), "loader": "dummy"}
    with LLM(**arguments) as llm:
        output = llm.generate([5, 6], SamplingParams(max_tokens=3, ignore_eos=True, logprobs=0))[0].outputs[0]
        assert (len(output.token_ids), output.text) == (3, "")
        for call in (lambda: llm.generate("text"), lambda: llm.chat([{"role": "user", "content": "x"}])):
            with pytest.raises(RequestError, match="needs a tokenizer"):
                call()
