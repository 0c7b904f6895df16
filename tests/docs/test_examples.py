"""The examples run, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.config.compose import load_launch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_listed_and_tested(root):
    listed = set(re.findall(r"\]\((\S+\.(?:py|yaml))\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {
        path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.*") if path.suffix in (".py", ".yaml")
    }
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f'"{Path(name).stem}"' in source for name in listed)


def test_offline_batch(example, tiny, capsys):
    module = example("offline_batch")
    module.main(["--model", str(tiny), "--max-tokens", "5"])
    printed = capsys.readouterr().out
    assert all(question in printed for question in module.QUESTIONS)
    assert len(re.findall(r"\(\d tokens, (?:length|stop), \d+\.\d\d s\)", printed)) == len(module.QUESTIONS)


def test_async_streaming(example, tiny, capsys):
    example("async_streaming").main(["--model", str(tiny), "--max-tokens", "4"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"^[12]: that was all \((?:length|stop)\)$", printed, re.MULTILINE)) == 2


def test_compose_in_python(example, tiny, capsys):
    example("compose_in_python").main(["--model", str(tiny)])
    printed = capsys.readouterr().out
    assert "policy: shortest (given in Python" in printed
    assert re.findall(r": (\d+) tokens, length", printed) == ["4", "8", "12"]


def test_plugin_in_20_lines(tiny):
    name = "plugin_in_20_lines"
    code = (EXAMPLES / f"{name}.py").read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    config = {"plugins": {"load": [str(EXAMPLES / f"{name}.py")]}, "scheduler": "shortest-prompt"}
    with LLM(tiny, config=config) as llm:
        assert llm.generate("Hello", SamplingParams(max_tokens=2, ignore_eos=True))[0].outputs[0].text


@pytest.mark.parametrize("name", ["laptop", "int8", "priority"])
def test_launch_file(name, tiny):
    file = EXAMPLES / "config" / f"{name}.yaml"
    load_launch(file)
    model = {"path": str(tiny), "device": "cpu", "threads": 1, "max_length": 64}
    with LLM(model, config=file, cache={"blocks": 32}) as llm:
        assert llm.generate("Hello", SamplingParams(max_tokens=2, ignore_eos=True))[0].outputs[0].token_ids
