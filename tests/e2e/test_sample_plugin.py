"""A third-party package from its source folder to a served answer: built by pip, found, configured, used."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError, RequestError
from octavo.testing.tiny import tiny_llama
from octavo.testing.trial import Job, try_policy

SOURCE = Path(__file__).parents[1] / "sample_plugin"
OCTAVO = [sys.executable, "-m", "octavo.cli.main"]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SMALL = {"cache": {"blocks": 128}, "config": {"model": {"threads": 1, "max_length": 128}}}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package in it, as pip installs it; on ``sys.path`` while these tests run."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copytree(SOURCE, folder / "source")  # a build must not write into the tests
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*pip, str(folder / "source")], check=True, timeout=120)
    sys.path.insert(0, str(folder / "site"))
    yield folder / "site"
    sys.path.remove(str(folder / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "octavo_sample"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("sampled") / "tiny"))


def environment(site):
    """Child processes find the package, too."""
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def octavo(site, *arguments):
    done = subprocess.run([*OCTAVO, *arguments], capture_output=True, text=True, timeout=60, env=environment(site))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_what_it_should(site):
    files = {path.name for path in (site / "octavo_sample").iterdir() if path.is_file()}
    assert files >= {"plugin.py", "policy.py", "processor.py", "surface.py", "command.py", "options.py", "py.typed"}
    (info,) = site.glob("octavo_sample-*.dist-info")
    assert "sample = octavo_sample.plugin" in (info / "entry_points.txt").read_text()


def test_it_is_listed_with_what_it_contributes(site):
    (plugin,) = [item for item in json.loads(octavo(site, "plugins", "list", "--json")) if item["name"] == "sample"]
    assert (plugin["status"], plugin["distribution"], plugin["kind"]) == ("loaded", "octavo-sample", "entry point")
    contributed = {(item["slot"], item["name"]) for item in plugin["contributes"]}
    assert contributed == {("policy", "shortest-first"), ("logits_processors", "nudge"), ("api", "sample")}


def test_its_command_runs(site):
    lines = octavo(site, "sample", "--jobs", "100").splitlines()
    steps = {line[:16].strip(): [float(number) for number in line[16:].split()] for line in lines[1:]}
    assert set(steps) == {"none", "0.5", "first come first"}
    assert steps["none"][0] < steps["first come first"][0]  # on average, shortest first is quicker
    assert steps["none"][1] > steps["first come first"][1]  # and the longest wait is longer


def shortest_first(ageing):
    options = importlib.import_module("octavo_sample.options").ShortestFirstOptions(ageing=ageing)
    return importlib.import_module("octavo_sample.policy").ShortestFirst(options)


def test_ageing_keeps_long_requests_from_starving(site):
    long = Job(prompt_length=8, max_tokens=100, arrival=2)
    short = [Job(prompt_length=8, max_tokens=4, arrival=step) for step in range(300)]
    ends = {
        ageing: try_policy(shortest_first(ageing), [long, *short], max_sequences=1)[0].finished
        for ageing in (0.0, 2.0)
    }
    assert ends[0.0] > 1000  # after all the others
    assert ends[2.0] < 500


def test_out_of_blocks_the_longest_gives_way_and_answers_stay_right(site):
    jobs = [Job(prompt_length=16, max_tokens=16 * (4 - index), arrival=0) for index in range(4)]
    outcomes = try_policy(shortest_first(0.0), jobs, num_blocks=9)
    assert outcomes[0].preemptions > 0
    assert outcomes[3].preemptions == 0
    assert [outcome.finished for outcome in outcomes] == sorted((o.finished for o in outcomes), reverse=True)


@pytest.fixture(scope="module")
def llm(site, model):
    with LLM(model, **SMALL, scheduler="shortest-first", logits_processors=["nudge"]) as engine:
        yield engine


def first_token(llm, **extra):
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, extra=extra or None)
    return llm.generate("Hello", params)[0].outputs[0].token_ids[0]


def test_an_engine_uses_policy_and_processor(llm):
    slots = {slot.slot: (slot.chosen, slot.plugin) for slot in llm.explain().slots}
    assert slots["policy"][0] == "shortest-first"
    assert slots["logits_processors.0"][0] == "nudge"
    assert "octavo-sample 0.3.0" in slots["policy"][1]
    usual = first_token(llm)
    assert first_token(llm, nudge={"ban": [usual]}) != usual
    other = (usual + 1) % 300
    assert first_token(llm, nudge={"boost": {other: 100}}) == other
    assert first_token(llm, nudge={"boost": {str(other): 100}}) == other  # as JSON would have it
    assert first_token(llm) == usual


def test_neighbours_in_a_batch_are_left_alone(llm):
    prompts = ["One", "Two", "Three"]
    alone = [llm.generate(prompt, GREEDY)[0].outputs[0].token_ids for prompt in prompts]
    banned = alone[1][0]
    nudged = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, extra={"nudge": {"ban": [banned]}})
    together = llm.generate(prompts, [GREEDY, nudged, GREEDY])
    assert [output.outputs[0].token_ids for output in together][::2] == alone[::2]
    assert banned not in together[1].outputs[0].token_ids


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        {"bann": [1]},
        {"ban": 1},
        {"ban": [-1]},
        {"ban": [10**6]},
        {"ban": [True]},
        {"boost": [1]},
        {"boost": {"x": 1}},
        {"boost": {1: math.nan}},
        {"boost": {1: 1000}},
        {"boost": {1: True}},
        {"ban": list(range(300))},
    ],
    ids=repr,
)
def test_a_wrong_request_is_refused_and_the_next_one_served(llm, wrong):
    with pytest.raises(RequestError, match="nudge") as refused:
        first_token(llm, nudge=wrong)
    assert refused.value.param == "extra"
    assert first_token(llm) >= 0


def test_the_operators_bans_hold_for_every_request(site, model, llm):
    usual = first_token(llm)
    section = {"use": "nudge", "options": {"ban": [usual]}}
    with LLM(model, **SMALL, logits_processors=[section]) as strict:
        assert first_token(strict) != usual
        assert first_token(strict, nudge={"boost": {usual: 100}}) != usual


def test_wrong_options_name_key_and_value(site, model):
    with pytest.raises(ConfigError, match=r"scheduler\.options\.ageing: .*-1"):
        LLM(model, scheduler={"use": "shortest-first", "options": {"ageing": -1}})
    with pytest.raises(ConfigError, match=r"scheduler\.options\.aging: unknown key\. Did you mean 'ageing'\?"):
        LLM(model, scheduler={"use": "shortest-first", "options": {"aging": 1}})


@pytest.fixture(scope="module")
def served(site, model, tmp_path_factory):
    """``octavo serve`` with the sample's policy, processor and surface: base address and what was logged."""
    launch = tmp_path_factory.mktemp("launch") / "sample.yaml"
    launch.write_text(
        json.dumps(
            {
                "model": {"path": model, "threads": 1, "max_length": 128},
                "cache": {"blocks": 128},
                "scheduler": {"use": "shortest-first", "options": {"ageing": 20}},
                "logits_processors": ["nudge"],
                "api": [{"use": name, "options": {"port": 0}} for name in ("openai", "sample")],
            }
        )
    )
    process = subprocess.Popen(
        [*OCTAVO, "serve", str(launch)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(site),
    )
    log, ready = [], threading.Event()

    def read():
        for line in process.stderr:
            log.append(line)
            if "is ready at" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(120)
        assert process.poll() is None, "".join(log)
        yield re.search(r"ready at (\S+) \(openai, sample\)", "".join(log))[1], log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        reader.join()


def test_served_beside_openais_routes(served):
    address, log = served
    assert httpx.get(f"{address}/sample/ping").json() == {"ready": True, "model": "tiny", "running": 0}
    body = {"prompt": "Hello", "max_tokens": 3, "ignore_eos": True}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 3
    deadline = time.monotonic() + 10  # observers run in a thread of their own
    while not any("octavo.sample: " in line and ": 3 tokens, length" in line for line in log):
        assert time.monotonic() < deadline, log
        time.sleep(0.02)
