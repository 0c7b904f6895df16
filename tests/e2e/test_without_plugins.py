"""Any first-party plugin can be taken away: what needs it says so, everything else works as before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import importlib_metadata
import pytest

from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.errors import ConfigError, OctavoError, PluginError
from octavo.plugins.host import PluginHost
from octavo.plugins.slots import BY_KEY
from octavo.testing.tiny import tiny_llama

FIRST_PARTY = sorted(
    point.name
    for point in importlib_metadata.entry_points(group="octavo.plugins")
    if point.dist.metadata["Name"] == "octavo"
)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
SMALL = {"threads": 1, "max_length": 64, "device": "cpu"}
WHERE = {
    "loader": lambda name: {"model": {"loader": name}},
    "architecture": lambda name: {"architecture": name},
    "attention": lambda name: {"attention": name},
    "quantization": lambda name: {"quantization": name},
    "ops": lambda name: {"ops": {"prefer": [name.partition("/")[2]]}},
    "lora": lambda name: {"lora": name},
    "policy": lambda name: {"scheduler": name},
    "proposer": lambda name: {"speculation": name},
    "logits_processors": lambda name: {"logits_processors": [name]},
    "executor": lambda name: {"executor": name},
    "api": lambda name: {"api": [name]},
    "structured": lambda name: {"structured_outputs": name},
}
"""By slot: what asks for a record. ``architecture`` is not of the configuration, but of the model's."""
NOT_BY_NAME = {"native", "tool_parsers"}
"""Slots of which an engine asks for nothing: libraries are of their plugins, tool parsers of an API surface."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("without") / "tiny"))


@pytest.fixture(scope="module")
def contributed():
    """By plugin, the records that are ours and can be asked for: (slot, name)."""
    host = PluginHost.load()
    assert all(status.status == "loaded" for status in host.report() if status.name in FIRST_PARTY), host.report()
    found = {name: [] for name in FIRST_PARTY}
    for slot in BY_KEY.values():
        for item in host.contributions(slot.key):
            if item.plugin in found and slot.key not in NOT_BY_NAME:
                found[item.plugin].append((slot.key, slot.identity(item.record)))
    return found


@pytest.fixture
def uninstalled(monkeypatch):
    """``uninstalled("int8")``: as if these entry points had never been installed."""

    def remove(*names):
        installed = importlib_metadata.entry_points(group="octavo.plugins")
        left = [point for point in installed if point.name not in names]
        monkeypatch.setattr("octavo.plugins.sources.importlib_metadata.entry_points", lambda group: left)

    return remove


def renamed(model, architecture):
    """The model as if it were of another architecture."""
    folder = Path(model).with_name(architecture)
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    return str(folder)


def answer(model, disable=(), autoload=True, architecture=None, **sections):
    config = {"plugins": {"disable": list(disable), "autoload": autoload}, "cache": {"blocks": 32}}
    if architecture is not None:
        model = renamed(model, architecture)
    sections["model"] = {"path": model, **SMALL, **sections.get("model", {})}
    with LLM(config=config, **sections) as llm:
        return llm.generate("Hello", GREEDY)[0].outputs[0].token_ids


@pytest.fixture(scope="module")
def usual(model):
    return answer(model)


def test_there_are_plugins_to_take_away():
    assert {"int8", "openai"} <= set(FIRST_PARTY)


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_disabled_it_is_not_missed(model, usual, name):
    assert answer(model, disable=[name]) == usual


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_uninstalled_it_is_not_missed(model, usual, name, uninstalled):
    uninstalled(name)
    assert answer(model) == usual


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_asked_for_though_disabled_the_answer_names_plugin_and_reason(model, contributed, name):
    for slot, record in contributed[name]:
        with pytest.raises((ConfigError, PluginError)) as refused:
            answer(model, disable=[name], **WHERE[slot](record))
        message = str(refused.value)
        assert record.rpartition("/")[2] in message
        assert f"{name!r} (octavo " in message
        assert "named in plugins.disable" in message


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_asked_for_though_uninstalled_the_answer_says_what_there_is(model, contributed, name, uninstalled):
    uninstalled(name)
    for slot, record in contributed[name]:
        with pytest.raises((ConfigError, PluginError), match=rf"no .* {record.rpartition('/')[2]!r}"):
            answer(model, **WHERE[slot](record))


def test_a_command_whose_plugin_is_uninstalled_is_not_there(uninstalled, capsys):
    added = {command.plugin.split("'")[1]: name for name, command in PluginHost.load().commands().items()}
    ours = {plugin: command for plugin, command in added.items() if plugin in FIRST_PARTY}
    assert "bench" in ours
    for plugin, command in ours.items():
        uninstalled(plugin)
        assert main([command, "--help"]) == 2
        assert f"there is no command {command!r}" in capsys.readouterr().err


def test_every_plugin_is_missed_by_someone(contributed):
    """What a plugin brings is either a record or a command, which the tests above cover, or of ``NOT_BY_NAME``."""
    host = PluginHost.load()
    others = {command.plugin.split("'")[1] for command in host.commands().values()}
    others |= {item.plugin for slot in NOT_BY_NAME for item in host.contributions(slot)}
    assert all(contributed[name] or name in others for name in FIRST_PARTY)


def test_without_any_the_core_generates(model, usual):
    assert answer(model, disable=FIRST_PARTY) == usual
    assert answer(model, autoload=False) == usual


def test_uninstalled_all_the_core_generates(model, usual, uninstalled):
    uninstalled(*FIRST_PARTY)
    assert answer(model) == usual


def test_in_a_fresh_process_the_core_imports_none_of_them(model, tmp_path):
    script = f"""
import sys
from octavo import LLM, SamplingParams
config = {{"plugins": {{"disable": {FIRST_PARTY!r}}}, "model": {{"path": {model!r}, **{SMALL!r}}}}}
with LLM(config=config, cache={{"blocks": 32}}) as llm:
    print(len(llm.generate("Hello", SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids))
print([name for name in sys.modules if name.startswith("octavo_")])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert done.stdout.split("\n")[:2] == ["3", "[]"], done.stderr


@pytest.mark.parametrize("how", ["disabled", "uninstalled"])
def test_serve_without_a_surface_refuses_before_loading(model, how, uninstalled, capsys):
    if how == "uninstalled":
        uninstalled("openai")
    disable = ["--set", "plugins.disable=[openai]"] if how == "disabled" else []
    assert main(["serve", "--model", model, *disable]) == 2
    message = capsys.readouterr().err
    assert "no API surface is named, so there is nothing to serve" in message
    assert ("'openai' (octavo " in message) == (how == "disabled")


@pytest.mark.parametrize(
    ("policy", "empty"), [("fcfs", "no scheduling policy named 'fcfs'"), ("auto", "the loader slot is empty")]
)
def test_without_the_builtin_plugin_the_core_says_which_slot_is_empty(model, policy, empty):
    with pytest.raises(OctavoError, match=rf"{empty}.*'builtin' \(octavo .*named in plugins\.disable"):
        answer(model, disable=["builtin"], scheduler=policy)
