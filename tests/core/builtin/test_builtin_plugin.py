"""The built-in plugin: what it contributes, and that describing it needs no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.assemble import Resolved, resolve
from octavo.config.compose import load_launch
from octavo.plugins.host import PluginHost
from octavo.records import Record
from octavo.testing.tiny import tiny_llama


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Resolved:
    path = tiny_llama(tmp_path_factory.mktemp("tiny"))
    data = {"plugins": {"autoload": False}, "api": [], "model": {"path": str(path), "device": "cpu"}}
    return resolve(*load_launch(data))


def record_of(resolved: Resolved, slot: str, name: str) -> Record:
    found = [item.record for item in resolved.host.contributions(slot) if item.record.name == name]
    assert len(found) == 1
    record: Record = found[0]
    return record


def test_listing_it_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from octavo.plugins.host import PluginHost; from octavo.config.schema import PluginsSection;"
        "PluginHost.load(PluginsSection(autoload=False)).report();"
        "print([m for m in ('torch', 'transformers', 'triton', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("slot", "names"),
    [
        ("loader", ["safetensors", "gguf", "dummy"]),
        ("architecture", ["LlamaForCausalLM", "MistralForCausalLM"]),
        ("attention", ["torch"]),
        ("policy", ["fcfs", "priority"]),
        ("executor", ["inline"]),
        ("quantization", []),
        ("api", []),
    ],
)
def test_what_it_contributes(slot: str, names: list[str]) -> None:
    host = PluginHost.from_lock(PluginHost.load(load_launch({"plugins": {"autoload": False}})[0].plugins).lock())
    assert [item.record.name for item in host.contributions(slot)] == names
    assert all(item.record.summary for item in host.contributions(slot))


@pytest.mark.parametrize(
    ("slot", "name", "kind"),
    [
        ("loader", "safetensors", "SafetensorsLoader"),
        ("loader", "gguf", "GgufLoader"),
        ("loader", "dummy", "DummyLoader"),
        ("attention", "torch", "TorchAttention"),
    ],
)
def test_records_build_their_objects(resolved: Resolved, slot: str, name: str, kind: str) -> None:
    record = record_of(resolved, slot, name)
    assert type(record.build(resolved.context, record.options())).__name__ == kind


def test_the_formats_are_told_apart(resolved: Resolved) -> None:
    reasons = {item.record.name: item.record.supports(resolved.context) for item in resolved.host.model_loaders()}
    assert reasons == {
        "safetensors": None,
        "gguf": "reads a .gguf file; the model is safetensors files",
        "dummy": None,
    }
    assert resolved.choices["loader"].name == "safetensors"


def test_torch_attention_refuses_types_it_can_not_keep(resolved: Resolved) -> None:
    supports = record_of(resolved, "attention", "torch").supports
    assert supports(resolved.context) is None
    assert supports(replace(resolved.context, kv_dtype="fp8_e4m3")) is None
    reason = supports(replace(resolved.context, kv_dtype="int8"))
    assert reason == "keeps keys and values as float32, float16, bfloat16, fp8_e4m3, not int8"


def test_the_inline_executor_runs_one_rank(resolved: Resolved) -> None:
    supports = record_of(resolved, "executor", "inline").supports
    assert supports(resolved.context) is None
    reason = supports(replace(resolved.context, tensor_parallel=2, data_parallel=3))
    assert reason is not None
    assert "executor.tensor_parallel is 2 and executor.data_parallel is 3" in reason


def test_the_inline_executor_is_built_from_the_whole_decision(
    resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.run import inline

    seen: list[Any] = []
    monkeypatch.setattr(inline, "InlineExecutor", seen.append)
    resolved.choices["executor"].record.build(resolved, resolved.choices["executor"].options)
    assert seen == [resolved]


def test_no_name_of_a_plugin_is_compared_in_the_core() -> None:
    """Capabilities, not names: none of the built-in records' names is a literal in the code that chooses."""
    import octavo

    root = Path(octavo.__file__).parent
    for file in ("selection.py", "slot_choices.py", "assemble.py", "plugins/loading.py", "plugins/host.py"):
        text = (root / file).read_text()
        for name in ("torch", "fcfs", "priority", "inline", "safetensors", "gguf", "dummy", "triton", "openai"):
            assert f'"{name}"' not in text, f"{file} mentions {name!r}"
