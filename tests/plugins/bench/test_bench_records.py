"""Records: their form, their units, and a command that another can repeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo_bench.records import append, command, current_commit, installed, origin, unit_of

KEYS = ["workload", "metric", "value", "unit", "machine", "commit", "date", "command", "versions", "repeats"]


def test_a_record_has_the_agreed_form(tmp_path: Path) -> None:
    run = origin("W1", "NVIDIA H200", ["throughput", "--workload", "W1"], commit="abc")
    path = tmp_path / "deep" / "figures.jsonl"
    append([run.record("output_tok_s", [3.0, 1.0, 2.0])], str(path))
    append([run.record("input_tok_s", [1.0, 2.0])], str(path))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert list(first) == KEYS
    assert (first["value"], first["repeats"], first["unit"]) == (2.0, [3.0, 1.0, 2.0], "tok/s")
    assert (first["workload"], first["metric"], first["machine"]) == ("W1", "output_tok_s", "NVIDIA H200")
    assert (first["command"], first["commit"]) == ("octavo bench throughput --workload W1", "abc")
    assert first["date"].endswith("Z")
    assert {"octavo", "python", "torch"} <= set(first["versions"])
    assert second["value"] == 1.5


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("output_tok_s", "tok/s"),
        ("output_tok_s_off", "tok/s"),
        ("requests_s", "requests/s"),
        ("goodput_requests_s", "requests/s"),
        ("failed_requests", "requests"),
        ("itl_ms", "ms"),
        ("e2el_ms_p99", "ms"),
        ("first_token_s_cold", "s"),
    ],
)
def test_units(metric: str, unit: str) -> None:
    assert unit_of(metric) == unit


def test_the_command_names_no_place_of_this_machine() -> None:
    words = ["throughput", "/home/me/fast.yaml", "--model", "../models/tiny/", "--set", "model.path=/data/x.gguf"]
    words += ["--json", "/tmp/out.jsonl", "--profile=/tmp/p.json", "--commit", "abc", "--set", "a.b=1/2"]
    words += ["--url", "http://127.0.0.1:8000/v1"]
    assert command(words) == (
        "octavo bench throughput fast.yaml --model tiny --set model.path=x.gguf --set a.b=2 "
        "--url http://127.0.0.1:8000/v1"
    )


def test_commit_is_of_this_checkout_or_a_version() -> None:
    found = current_commit().removesuffix("-dirty")
    assert found == f"octavo {installed()['octavo']}" or (len(found) == 12 and int(found, 16) >= 0)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--json"):
        append([], str(tmp_path / "file" / "below"))
