"""``octavo bench throughput``, ``latency`` and ``startup`` on a tiny model."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from octavo.config.schema import PluginsSection
from octavo.errors import OctavoError
from octavo.params import SamplingParams
from octavo.plugins.host import PluginHost
from octavo_bench import plugin
from octavo_bench.adapters import with_adapters
from octavo_bench.command import bench
from octavo_bench.engine import Engine, running, timed
from octavo_bench.latency import Latency
from octavo_bench.sizes import Job
from octavo_bench.window import profiled

SMALL = ["--set", "model.threads=1", "--set", "cache.blocks=128", "--repeats", "2"]


def test_the_plugin_adds_the_command() -> None:
    host = PluginHost.load(PluginsSection(autoload=False), [plugin])
    assert list(host.commands(taken=())) == ["bench"]


def test_importing_the_plugin_is_light() -> None:
    code = "import sys, octavo_bench.plugin; print([n for n in ('torch', 'numpy', 'yaml') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_octavo_itself_finds_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "latency", "--help"])
    assert end.value.code == 0
    assert "--batch" in capsys.readouterr().out


def test_throughput(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_lines: Any) -> None:
    file = tmp_path / "figures.jsonl"
    words = ["throughput", "--model", str(tiny_folder), "--requests", "5", "--input-len", "uniform:4-9", *SMALL]
    assert bench([*words, "--output-len", "3", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "output tok/s" in out
    assert "15 out" in out
    records = read_lines(file)
    assert [record["metric"] for record in records] == ["output_tok_s", "input_tok_s", "requests_s"]
    output, _, requests = (record["value"] for record in records)
    assert [len(record["repeats"]) for record in records] == [2, 2, 2]
    assert output == pytest.approx(3 * requests)
    assert str(tmp_path) not in file.read_text()
    assert str(tiny_folder.parent) not in file.read_text()


def test_requests_use_adapters_in_turn(tiny_folder: Path, tmp_path: Path, read_lines: Any) -> None:
    file = tmp_path / "figures.jsonl"
    words = ["throughput", "--model", str(tiny_folder), "--requests", "5", "--input-len", "4", "--output-len", "3"]
    assert bench([*words, *SMALL, "--adapters", "3", "--rank", "2", "--json", str(file)]) == 0
    assert read_lines(file)[0]["workload"] == "throughput random 5 x 4/3, 3 adapters of rank 2"
    with (
        with_adapters(
            {"model": {"path": str(tiny_folder), "threads": 1}, "cache": {"blocks": 64}}, 3, 2
        ) as adapted,
        running(adapted[0]) as engine,
    ):
        served = engine.llm.adapters()
        assert [adapter.name for adapter in served] == adapted[1]
        assert len({adapter.digest for adapter in served}) == 3
        asked, params = [[5, 6, 7]] * 4, SamplingParams(max_tokens=1, prompt_logprobs=0)
        outputs = engine.llm.generate(asked, params, adapter=[*adapted[1], None])
        assert len({output.prompt_logprobs[2].logprob for output in outputs}) == 4  # four different models
        assert timed(engine, [Job([5, 6, 7], 2)] * 4, adapters=adapted[1]).output_tokens == 8
    with pytest.raises(OctavoError, match="--rank goes with --adapters"):
        bench([*words, *SMALL, "--rank", "2"])


def test_a_preset_records_what_it_is_known_by(tiny_folder: Path, tmp_path: Path, read_lines: Any) -> None:
    file = tmp_path / "figures.jsonl"
    words = ["throughput", "--workload", "W6", "--model", str(tiny_folder), "--input-len", "20", "--scale", "0.25"]
    assert bench([*words, *SMALL, "--json", str(file)]) == 0
    (record,) = read_lines(file)
    assert (record["metric"], record["workload"]) == ("input_tok_s", "W6 (input_len, model, scale changed)")


def test_both_states_of_the_prefix_cache(tiny_folder: Path, tmp_path: Path, read_lines: Any) -> None:
    """In processes of their own, which write into one file."""
    file = tmp_path / "figures.jsonl"
    words = ["throughput", "--workload", "W4", "--model", str(tiny_folder), "--scale", "0.01", "--prefix-len", "64"]
    assert bench([*words, "--input-len", "8", "--output-len", "2", *SMALL, "--json", str(file)]) == 0
    assert [record["metric"] for record in read_lines(file)] == ["output_tok_s_on", "output_tok_s_off"]


def test_requests_from_files(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk, trace = tmp_path / "talk.json", tmp_path / "trace.jsonl"
    turns = [{"from": "human", "value": "What is the capital?"}, {"from": "gpt", "value": "Paris, of course."}]
    talk.write_text(json.dumps([{"conversations": turns}] * 3))
    trace.write_text('{"timestamp": 5, "input": 7, "output": 3}\n{"timestamp": 6, "input": 2, "output": 1}\n')
    common = ["throughput", "--model", str(tiny_folder), *SMALL, "--repeats", "1", "--warmup", "0"]
    assert bench([*common, "--dataset", "sharegpt", "--path", str(talk), "--requests", "2"]) == 0
    ids, answer = (len(encoded) for encoded in encode(tiny_folder, "What is the capital?", "Paris, of course."))
    assert f"2 requests, {2 * ids} tokens in, {2 * answer} out" in capsys.readouterr().out
    assert bench([*common, "--dataset", "trace", "--path", str(trace)]) == 0
    assert "2 requests, 9 tokens in, 4 out" in capsys.readouterr().out


def encode(folder: Path, *texts: str) -> list[list[int]]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in texts]


def test_latency(tiny_folder: Path, tmp_path: Path, read_lines: Any) -> None:
    file = tmp_path / "figures.jsonl"
    words = [
        "latency",
        "--model",
        str(tiny_folder),
        "--batch",
        "2",
        "--input-len",
        "8",
        "--output-len",
        "6",
        *SMALL,
    ]
    assert bench([*words, "--json", str(file)]) == 0
    records = {record["metric"]: record for record in read_lines(file)}
    assert set(records) == {"itl_ms", "ttft_ms", "output_tok_s"}
    assert all(record["value"] > 0 and len(record["repeats"]) == 2 for record in records.values())


def test_time_between_tokens_is_without_the_first() -> None:
    found = Latency(whole=2.55 + 0.01, first=0.01, batch=4, output=256).figures
    assert found["itl_ms"] == pytest.approx(10.0)
    assert found["ttft_ms"] == pytest.approx(10.0)
    assert found["output_tok_s"] == pytest.approx(4 * 256 / 2.56)


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Any:
    sections = {"model": {"path": str(tiny_folder), "threads": 1}, "cache": {"blocks": 64}}
    with running(sections) as engine:
        yield engine


def test_a_timing_begins_with_an_empty_prefix_cache(engine: Engine) -> None:
    jobs = [Job(list(range(40)), 2)]
    first, second = timed(engine, jobs), timed(engine, jobs)
    assert (first.cached_tokens, second.cached_tokens) == (0, 0)
    assert (first.input_tokens, first.output_tokens, first.requests, first.steps) == (40, 2, 1, second.steps)
    assert engine.prefix_cache
    assert "tiny in float32" in engine.describe()


def test_short_answers_are_no_result(engine: Engine) -> None:
    with pytest.raises(OctavoError):
        timed(engine, [Job(list(range(40)), 5000)])


@pytest.mark.parametrize("what", ["throughput", "latency"])
def test_a_profile_shows_operators_of_some_steps(what: str, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    words = [what, "--model", str(tiny_folder), "--input-len", "4", "--output-len", "100", *SMALL]
    words += ["--requests", "4"] if what == "throughput" else []
    assert bench([*words, "--profile", str(file), "--profile-at", "0.1", "--profile-seconds", "0.02"]) == 0
    events = json.loads(file.read_text())["traceEvents"]
    steps = sum(event.get("name") == "aten::rsqrt_" for event in events) / 5  # norms of two layers and the last
    assert 1 <= steps < 90  # of 100


def test_a_window_behind_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="over before"), profiled(str(tmp_path / "trace.json"), 60.0, 1.0):
        pass
    with pytest.raises(OctavoError, match="no folder"), profiled(str(tmp_path / "no" / "trace.json"), 0.0, 1.0):
        pass
    assert not list(tmp_path.iterdir())


def test_a_window_that_outlasts_the_run_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "trace.json.gz"
    handler = signal.getsignal(signal.SIGUSR1)
    with profiled(str(file), 0.0, 60.0):
        limit = time.monotonic() + 0.3
        while time.monotonic() < limit:
            time.sleep(0.01)
    assert b"traceEvents" in gzip.decompress(file.read_bytes())
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_startup(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_lines: Any) -> None:
    file = tmp_path / "figures.jsonl"
    words = ["startup", "--model", str(tiny_folder), "--input-len", "4", "--repeats", "1", "--json", str(file)]
    before = dict(os.environ)
    assert bench([*words, "--set", "model.threads=1", "--set", "cache.blocks=64"]) == 0
    assert dict(os.environ) == before
    out = capsys.readouterr().out
    assert "cold, median" in out
    assert "warm, median" in out
    records = read_lines(file)
    assert [record["metric"] for record in records] == ["first_token_s_cold", "first_token_s_warm"]
    assert all(record["value"] > 0.3 and record["unit"] == "s" for record in records)


def test_startup_says_why_it_failed(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"did not start .*no such folder"):
        bench(["startup", "--model", str(tmp_path / "nothing"), "--repeats", "1"])


@pytest.mark.parametrize(
    "words",
    [
        ["throughput", "--dataset", "fixed", "--input-len", "uniform:1-3"],
        ["throughput", "--dataset", "trace"],
        ["throughput", "--path", "x"],
        ["throughput", "--dataset", "trace", "--path", "x", "--input-len", "3"],
        ["throughput", "--dataset", "trace", "--path", "x", "--output-len", "3"],
        ["throughput", "--dataset", "trace", "--path", "x", "--scale", "0.5"],
        ["throughput", "--workload", "W4", "--profile", "x"],
        ["latency", "--output-len", "1"],
        ["latency", "--input-len", "uniform:1-3"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused_before_an_engine_is_built(words: list[str]) -> None:
    with pytest.raises(OctavoError):
        bench(words)


@pytest.mark.parametrize(
    "words",
    [["latency", "--batch", "0"], ["throughput", "--scale", "2"], ["latency", "--workload", "W1"], ["speed"]],
)
def test_argparse_refuses(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench(words)
