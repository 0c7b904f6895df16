"""From a configuration to a decided engine: context, one choice a slot, the same again in a child process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.assemble import Resolved, build_executor, build_policy, make_context, rebuild, resolve
from octavo.config.compose import load_launch
from octavo.device import probe_cpu
from octavo.errors import CheckpointError, ConfigError, PluginError
from octavo.explain import explain
from octavo.hookspecs import hookimpl
from octavo.loading.profile import read_profile
from octavo.plugins.host import PluginHost
from octavo.records import (
    AttentionRecord,
    Context,
    DeviceProfile,
    ExecutorRecord,
    LogitsProcessorRecord,
    OpRecord,
    QuantizationRecord,
)
from octavo.run import memory

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}


PLAN = SimpleNamespace(
    weights_bytes=1,
    kv_bytes_per_block=2,
    num_blocks=3,
    kv_bytes=6,
    activation_bytes=4,
    sequences_at_max_length=1.5,
    lines=["weights 1 byte"],
)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    def write(**changes: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
        return str(tmp_path)

    return write


def decide(path: str, config: dict[str, Any] | None = None, *objects: object) -> Resolved:
    data = {"plugins": {"autoload": False}, "api": [], **(config or {})}
    data["model"] = {"path": path, "loader": "dummy", "device": "cpu", **data.get("model", {})}
    return resolve(*load_launch(data, (), objects))


def test_a_whole_engine_is_decided(model: Any) -> None:
    resolved = decide(model())
    names = {key: choice.name for key, choice in resolved.choices.items()}
    assert names == {
        "loader": "dummy",
        "architecture": "LlamaForCausalLM",
        "attention": "torch",
        "policy": "fcfs",
        "executor": "inline",
    }
    assert resolved.absent["quantization"].reason == "the checkpoint is not quantised"
    ctx = resolved.context
    assert (ctx.dtype, ctx.kv_dtype, ctx.max_length, ctx.block_size) == ("float32", "float32", 128, 16)
    assert ctx.device.type == "cpu"


def test_the_context_follows_the_configuration(model: Any) -> None:
    ctx = decide(
        model(),
        {
            "model": {"dtype": "bfloat16", "max_length": 64, "seed": 7},
            "cache": {"block_size": 8, "dtype": "float16"},
            "scheduler": {"max_sequences": 3, "max_batch_tokens": 99},
        },
    ).context
    assert (ctx.dtype, ctx.kv_dtype, ctx.max_length, ctx.seed) == ("bfloat16", "float16", 64, 7)
    assert (ctx.block_size, ctx.max_sequences, ctx.max_batch_tokens) == (8, 3, 99)


@pytest.mark.parametrize(
    ("stored", "kind", "expected"),
    [
        ("bfloat16", "cpu", "float32"),
        ("bfloat16", "cuda", "bfloat16"),
        ("float16", "cuda", "float16"),
        ("float32", "cuda", "float32"),
    ],
)
def test_auto_dtype(model: Any, stored: str, kind: str, expected: str) -> None:
    config, _ = load_launch({"plugins": {"autoload": False}, "api": []})
    profile = read_profile(model(torch_dtype=stored))
    cpu = probe_cpu()
    device = DeviceProfile(
        type=kind,
        index=0,
        name="x",
        capability=None,
        total_memory=cpu.total_memory,
        free_memory=cpu.free_memory,
        cores=1,
    )
    ctx = make_context(config, profile, device)
    assert (ctx.dtype, ctx.kv_dtype) == (expected, expected)


@pytest.mark.parametrize("length", [0, 1, 129, -5])
def test_a_length_the_model_does_not_have_is_refused(model: Any, length: int) -> None:
    with pytest.raises(ConfigError, match=r"^model\.max_length: should be from 2 to 128"):
        decide(model(), {"model": {"max_length": length}})


def test_a_folder_without_weights_needs_the_dummy_loader(model: Any) -> None:
    with pytest.raises(PluginError, match=r"no model loader works here\. safetensors: reads .*; gguf: .*; dummy: "):
        decide(model(), {"model": {"loader": "auto"}})
    with pytest.raises(PluginError, match=r"'gguf' \(named in model\.loader.*reads a \.gguf file"):
        decide(model(), {"model": {"loader": "gguf"}})


def test_an_unknown_architecture_gets_the_nearest(model: Any) -> None:
    with pytest.raises(PluginError, match=r"'LlamaForCausalML'\. Did you mean 'LlamaForCausalLM'\?"):
        decide(model(architectures=["LlamaForCausalML"]))


def test_code_in_a_checkpoint_is_refused_by_name(model: Any) -> None:
    remote = {"architectures": ["OddForCausalLM"], "auto_map": {"AutoModelForCausalLM": "odd.OddForCausalLM"}}
    with pytest.raises(PluginError, match=r"'OddForCausalLM' is defined by Python code inside the checkpoint"):
        decide(model(**remote))
    with pytest.raises(PluginError, match="no loaded plugin runs such code"):
        decide(model(**remote), {"model": {"trust_remote_code": True}})
    remote["architectures"] = ["LlamaForCausalLM"]
    assert decide(model(**remote)).choices["architecture"].name == "LlamaForCausalLM"


@pytest.mark.parametrize("key", ["tensor_parallel", "pipeline_parallel", "data_parallel"])
def test_more_ranks_than_any_executor_runs_are_refused(model: Any, key: str) -> None:
    with pytest.raises(PluginError, match=rf"no executor works here\. inline: .*executor\.{key} is 2"):
        decide(model(), {"executor": {key: 2}})


class Schemes:
    """Two quantisation schemes: one reads checkpoints of method ``q4``, one quantises while loading."""

    @hookimpl
    def octavo_quantizations(self) -> Any:
        def detect(profile: Any) -> bool:
            return profile.quantization is not None and profile.quantization.get("quant_method") == "q4"

        yield QuantizationRecord(name="q4", summary="Four bits.", build=object, detect=detect)
        yield QuantizationRecord(name="late", summary="While loading.", build=object, automatic=False)


class Takers:
    """A scheme for checkpoints that name none, as .gguf files do, on a GPU alone."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason

    @hookimpl
    def octavo_quantizations(self) -> Any:
        yield QuantizationRecord(
            name="taker", summary="", build=object, detect=lambda _: True, supports=lambda _: self.reason
        )
        # Written for quantised checkpoints only.
        yield QuantizationRecord(name="q4", summary="", build=object, detect=lambda p: p.quantization["bits"] == 4)


def test_a_scheme_may_take_checkpoints_that_name_none(model: Any) -> None:
    assert decide(model(), {}, Takers(None)).choices["quantization"].name == "taker"
    assert "quantization" not in decide(model(), {"quantization": "none"}, Takers(None)).choices
    absent = decide(model(), {}, Takers("needs a GPU")).absent["quantization"]
    assert absent.reason == "the checkpoint is not quantised"


def test_a_quantised_checkpoint_finds_its_scheme(model: Any) -> None:
    path = model(quantization_config={"quant_method": "q4"})
    assert decide(path, {}, Schemes()).choices["quantization"].name == "q4"
    with pytest.raises(PluginError, match=r"quantised \(quant_method 'q4'\), and no loaded plugin recognises it"):
        decide(path)
    with pytest.raises(PluginError, match=r"'none', but .* is quantised"):
        decide(path, {"quantization": "none"}, Schemes())
    with pytest.raises(PluginError, match=r"'late'.*does not recognise.*These would work: q4"):
        decide(path, {"quantization": "late"}, Schemes())


def test_an_unrecognised_scheme_lists_what_there_is(model: Any) -> None:
    path = model(quantization_config={"quant_method": "q9"})
    pattern = r"quant_method 'q9'.*Schemes there are: q4: Four bits\.; late: While loading\."
    with pytest.raises(PluginError, match=pattern):
        decide(path, {}, Schemes())


def test_an_unquantised_checkpoint_is_quantised_only_where_that_is_named(model: Any) -> None:
    resolved = decide(model(), {}, Schemes())
    assert "quantization" not in resolved.choices
    assert [item.name for item in resolved.absent["quantization"].candidates] == ["q4", "late"]
    assert decide(model(), {"quantization": "late"}, Schemes()).choices["quantization"].name == "late"
    assert "quantization" not in decide(model(), {"quantization": "none"}, Schemes()).choices


class Parts:
    """Operations, processors, an executor, and a say in the choice of attention."""

    @hookimpl
    def octavo_attention_backends(self) -> Any:
        yield AttentionRecord(name="slow", summary="", build=object, rank=-5)

    @hookimpl
    def octavo_select_attention(self, ctx: Context, candidates: Any) -> str | None:
        return "slow" if ctx.model.num_layers == 2 else None

    @hookimpl
    def octavo_ops(self) -> Any:
        yield OpRecord(op="rms_norm", name="fused", summary="", build=object)
        yield OpRecord(op="silu_mul", name="fused", summary="", build=object, supports=lambda _: "needs a GPU")

    @hookimpl
    def octavo_logits_processors(self) -> Any:
        for name in ("calm", "loud"):
            yield LogitsProcessorRecord(
                name=name,
                summary="",
                build=lambda ctx, options, name=name: (name, ctx.max_length),
                speculation_safe=True,
                argmax_invariant=False,
            )

    @hookimpl
    def octavo_executors(self) -> Any:
        yield ExecutorRecord(
            name="simulated", summary="", build=lambda resolved, options: (resolved, options), automatic=False
        )


def test_operations_are_chosen_one_by_one(model: Any) -> None:
    resolved = decide(model(), {}, Parts())
    assert [(choice.record.op, choice.name) for choice in resolved.ops] == [("rms_norm", "fused")]
    left = resolved.absent["ops.silu_mul"]
    assert (left.name, left.candidates[0].reason) == ("reference", "needs a GPU")
    preferred = decide(model(), {"ops": {"prefer": ["reference"]}}, Parts())
    assert preferred.ops == ()
    assert preferred.absent["ops.rms_norm"].reason == "the first of ops.prefer that works here"


def test_a_decide_hook_is_heard_but_the_configuration_has_the_last_word(model: Any) -> None:
    assert decide(model(), {}, Parts()).choices["attention"].reason == "decided by plugin 'Parts'"
    assert decide(model(), {"attention": {"prefer": ["torch"]}}, Parts()).choices["attention"].name == "torch"
    assert decide(model(num_hidden_layers=3), {}, Parts()).choices["attention"].name == "torch"


def test_processors_are_built_in_the_order_of_the_configuration(model: Any) -> None:
    resolved = decide(model(), {"logits_processors": ["loud", "calm"]}, Parts())
    assert [choice.name for choice in resolved.processors] == ["loud", "calm"]
    built: list[Any] = list(resolved.build_processors())
    assert built == [("loud", 128), ("calm", 128)]


def test_the_executor_gets_the_whole_decision(model: Any) -> None:
    resolved = decide(model(), {"executor": "simulated"}, Parts())
    built: Any = build_executor(resolved)
    assert built == (resolved, resolved.choices["executor"].options)


def test_the_policy_is_built(model: Any) -> None:
    policy = build_policy(decide(model(), {"scheduler": "priority"}))
    assert type(policy).__name__ == "PriorityPolicy"


def test_a_child_process_decides_the_same(model: Any) -> None:
    resolved = decide(model(), {"scheduler": {"use": "priority", "max_sequences": 5}, "model": {"max_length": 32}})
    again = rebuild(resolved.host.lock(), json.loads(json.dumps(resolved.config.to_mapping())))
    assert again.config == resolved.config
    assert {key: choice.name for key, choice in again.choices.items()} == {
        key: choice.name for key, choice in resolved.choices.items()
    }
    assert again.context.max_length == 32


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder or file"):
        decide(str(tmp_path / "nowhere"))


def test_explaining_says_what_and_why(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "plan_memory", lambda resolved: PLAN)
    resolved = decide(model(), {"logits_processors": ["calm"]}, Parts())
    explanation = explain(resolved)
    text = explanation.text()
    for words in (
        "attention: slow (decided by plugin 'Parts', plugin 'Parts' (given in Python))",
        "    - torch: works here",
        "quantization: none (the checkpoint is not quantised)",
        "    x safetensors: reads safetensors files; the model is a config.json without weights",
        "    x fused: needs a GPU",
        "LlamaForCausalLM",
        "Memory",
    ):
        assert words in text
    data = json.loads(json.dumps(explanation.to_json()))
    assert {slot["slot"] for slot in data["slots"]} >= {
        "loader",
        "attention",
        "ops.rms_norm",
        "logits_processors.0",
    }


def test_the_memory_plan_is_printed_or_why_there_is_none(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "plan_memory", lambda resolved: PLAN)
    explanation = explain(decide(model()))
    assert explanation.memory["sequences_at_max_length"] == 1.5
    assert "  weights 1 byte" in explanation.text()

    def refuse(resolved: Resolved) -> None:
        raise ConfigError("no room for KV blocks", "cache.memory")

    monkeypatch.setattr(memory, "plan_memory", refuse)
    explanation = explain(decide(model()))
    assert explanation.memory == {}
    assert "cache.memory: no room for KV blocks" in explanation.text()


def test_with_every_plugin_disabled_the_empty_slot_is_named(model: Any) -> None:
    config, _ = load_launch({"plugins": {"autoload": False}, "model": {"path": model(), "device": "cpu"}})
    bare = PluginHost.load(config.plugins.model_copy(update={"disable": ["builtin"]}))
    with pytest.raises(PluginError, match=r"the loader slot is empty.*Not loaded: 'builtin' \(octavo .*disabled"):
        resolve(config, bare)
