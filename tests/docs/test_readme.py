"""What the README shows of Octavo's output is what Octavo prints."""

from __future__ import annotations

import re

from octavo.cli.main import main

UNTOLD = re.compile(r"(, not on) .*|(octavo) \d[\w.]*")


def _plain(line: str) -> str:
    """Without the machine and the version."""
    return UNTOLD.sub(r"\1\2", line)


def test_explained_slots_are_real(read, desk, capsys):
    (block,) = [block for block in read("README.md") if block.mark == "explain"]
    shown = block.text.partition("…")[0].splitlines()
    assert main(["explain", "--set", "quantization=int8", "--set", "model.device=cpu"]) == 0
    printed = [_plain(line) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) > 5
    for line in shown:
        assert _plain(line) in printed


def test_memory_lines_have_the_shape_of_the_real_ones(read, desk, capsys):
    (block,) = [block for block in read("README.md") if block.mark == "explain"]
    shown = block.text.partition("Memory\n")[2]
    main(["explain", "--set", "model.device=cpu"])
    printed = capsys.readouterr().out.partition("Memory\n")[2]
    number = re.compile(r"[\d,.]+")
    assert [re.sub(r"\s+", " ", number.sub("0", line)) for line in shown.splitlines()] == [
        re.sub(r"\s+", " ", number.sub("0", line)) for line in printed.splitlines()
    ]


def test_the_plugin_has_20_lines(read):
    (block,) = [block for block in read("README.md") if block.mark == "shortest.py"]
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 20
