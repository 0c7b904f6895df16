"""Requests from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo_bench.datasets import sharegpt_jobs, trace_sizes
from octavo_bench.sizes import Job, Size


def conversations(path: Path, *pairs: tuple[str, ...]) -> str:
    turns = [[{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(p)] for p in pairs]
    path.write_text(json.dumps([{"id": str(i), "conversations": each} for i, each in enumerate(turns)]))
    return str(path)


def by_characters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_conversations_give_prompts_and_lengths(tmp_path: Path) -> None:
    path = conversations(
        tmp_path / "s.json",
        ("good question", "an answer", "and more"),
        ("no", "too short a prompt"),
        ("an answer too short", "no"),
        ("p" * 1025, "too long a prompt"),
        ("p" * 1000, "a" * 1049),
        ("only a question",),
    )
    assert sharegpt_jobs(path, 1, None, 0, by_characters) == [Job(by_characters("good question"), 9)]
    with pytest.raises(ConfigError, match=r"2 conversations were asked for; 1 of 5 are usable"):
        sharegpt_jobs(path, 2, None, 0, by_characters)
    found = sharegpt_jobs(path, 3, 20, 0, by_characters)
    assert {len(job.prompt) for job in found} == {13, 19, 1000}
    assert {job.output for job in found} == {20}


def test_without_a_tokenizer_prompts_stay_text(tmp_path: Path) -> None:
    path = conversations(tmp_path / "s.json", ("p" * 21, "a" * 401))
    assert sharegpt_jobs(path, 1, None, 0, None) == [Job("p" * 21, 101)]


def test_conversations_are_drawn_by_the_seed(tmp_path: Path) -> None:
    path = conversations(tmp_path / "s.json", *((f"question number {i}", "an answer to it") for i in range(40)))
    assert sharegpt_jobs(path, 9, None, 1, None) == sharegpt_jobs(path, 9, None, 1, None)
    assert sharegpt_jobs(path, 9, None, 1, None) != sharegpt_jobs(path, 9, None, 2, None)


@pytest.mark.parametrize("text", ["", "{", "3", '{"a": 1}', "[1]"])
def test_wrong_conversations_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ConfigError):
        sharegpt_jobs(str(tmp_path / "s.json"), 1, None, 0, None)


def test_traces_are_in_order_and_begin_at_nought(tmp_path: Path) -> None:
    rows = [(9.5, 30, 3), (7.0, 10, 1), (8.0, 20, 2)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n\n".join(json.dumps({"timestamp": a, "input": b, "output": c}) for a, b, c in rows))
    assert trace_sizes(str(path), None) == [Size(10, 1, 0.0), Size(20, 2, 1.0), Size(30, 3, 2.5)]
    assert trace_sizes(str(path), 2) == [Size(10, 1, 0.0), Size(20, 2, 1.0)]
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": [1]}')
    assert trace_sizes(str(path), None) == [Size(5, 6)]
    with pytest.raises(ConfigError, match="holds 1 requests; 2"):
        trace_sizes(str(path), 2)


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        '{"timestamp": 0, "input": 5}',
        '{"timestamp": 0, "input": 0, "output": 1}',
        '{"timestamp": NaN, "input": 5, "output": 1}',
        '{"timestamp": 0, "input": "5", "output": 1}',
    ],
)
def test_wrong_traces_are_refused_by_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input": 5, "output": 1}\n' + line)
    with pytest.raises(ConfigError, match="line 2"):
        trace_sizes(str(path), None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        trace_sizes(str(tmp_path / "nowhere"), None)
