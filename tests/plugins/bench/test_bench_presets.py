"""The presets are the workloads by which engines are compared, number for number."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from octavo.assemble import resolve
from octavo.config.compose import load_launch
from octavo_bench import latency, startup, throughput
from octavo_bench.launch import launch_sections
from octavo_bench.options import Settled, settle
from octavo_bench.presets import PRESETS
from octavo_bench.shapes import SHAPES, written
from octavo_bench.sizes import draw_sizes
from octavo_bench.workload import settled

THROUGHPUT = {
    "W1": ("8b", 1024, 512, 256, "off"),
    "W3": ("70b", 512, 512, 256, "off"),
    "W4": ("8b", 512, 64, 64, "both"),
    "W6": ("8b", 8, 7900, 1, "off"),
    "W8": ("8b", 256, 512, 128, "off"),
}
LATENCY = {
    "W2": ("8b", 1, 128, 256),
    "W2b8": ("8b", 8, 128, 256),
    "W2b32": ("8b", 32, 128, 256),
    "W3b1": ("70b", 1, 128, 128),
    "W3b32": ("70b", 32, 128, 128),
}


def settle_throughput(*words: str) -> Settled:
    parser = argparse.ArgumentParser()
    throughput.configure(parser)
    return settled(parser.parse_args(words), throughput.DEFAULTS, "throughput")


def settle_latency(*words: str) -> Settled:
    parser = argparse.ArgumentParser()
    latency.configure(parser)
    return settle(parser.parse_args(words), latency.DEFAULTS, lambda values: "latency")


@pytest.mark.parametrize("name", THROUGHPUT)
def test_throughput(name: str) -> None:
    shape, requests, input_len, output_len, cache = THROUGHPUT[name]
    found = settle_throughput("--workload", name)
    assert found.preset is not None
    assert found.preset.shape == shape
    assert (found["requests"], found["prefix_cache"], found["temperature"]) == (requests, cache, 0.0)
    sizes = draw_sizes(found["requests"], found["input_len"], found["output_len"], found["seed"])
    assert {(size.input, size.output) for size in sizes} == {(input_len, output_len)}
    assert found.label == name
    assert found["repeats"] >= 2
    assert found["warmup"] == 1.0


@pytest.mark.parametrize("name", LATENCY)
def test_latency(name: str) -> None:
    shape, batch, input_len, output_len = LATENCY[name]
    found = settle_latency("--workload", name)
    assert found.preset is not None
    assert (found.preset.shape, found["batch"]) == (shape, batch)
    assert (found["input_len"].low, found["input_len"].high) == (input_len, input_len)
    assert (found["output_len"].low, found["output_len"].high) == (output_len, output_len)
    assert (found["prefix_cache"], found["temperature"], found.label) == ("off", 0.0, name)
    assert set(found.preset.metrics) >= {"itl_ms", "ttft_ms"}


def test_w4_shares_a_prefix_and_w6_counts_its_input() -> None:
    found = settle_throughput("--workload", "W4")
    assert (found["dataset"], found["prefix_len"]) == ("shared-prefix", 2048)
    assert PRESETS["W6"].metrics == ("input_tok_s",)
    assert {PRESETS[name].metrics for name in ("W1", "W3", "W4", "W5", "W8")} == {("output_tok_s",)}


def test_w5_asks_for_the_tokens_that_the_others_were_asked_for() -> None:
    found = settle_throughput("--workload", "W5")
    sizes = draw_sizes(found["requests"], found["input_len"], found["output_len"], found["seed"])
    assert len(sizes) == 256
    assert sum(size.input for size in sizes) == 148_194
    assert sum(size.output for size in sizes) == 140_797
    assert found["temperature"] == 0.6
    assert found.preset is not None
    assert found.preset.shape == "0.6b"


def test_w7_is_a_start_of_the_8b_shape() -> None:
    parser = argparse.ArgumentParser()
    startup.configure(parser)
    found = settle(parser.parse_args(["--workload", "W7"]), startup.DEFAULTS, lambda values: "startup")
    assert (found.label, found.preset) == ("W7", PRESETS["W7"])
    assert PRESETS["W7"].shape == "8b"


def test_options_beside_a_preset_come_first_and_show_in_the_label() -> None:
    found = settle_throughput("--workload", "W1", "--output-len", "8", "--repeats", "2", "--scale", "0.05")
    assert (found["requests"], found["output_len"].low, found["repeats"]) == (51, 8, 2)
    assert found.label == "W1 (output_len, scale changed)"
    assert settle_throughput("--workload", "W1", "--requests", "1024").label == "W1"
    assert settle_throughput("--workload", "W1", "--prefix-cache", "on").label == "W1 (prefix_cache changed)"
    assert settle_throughput("--workload", "W4", "--prefix-cache", "on").label == "W4"
    assert settle_throughput("--workload", "W1", "--label", "mine").label == "mine"
    assert settle_throughput().label == "throughput random 128 x 512/128"


def sections_of(name: str, **given: Any) -> Any:
    values = {"config": None, "model": None, "shape": None, "prefix_cache": None, "overrides": [], **given}
    return launch_sections(preset=PRESETS[name], **values)


@pytest.mark.parametrize(
    ("name", "memory", "max_length", "dtype"),
    [("W1", 0.92, 8192, "auto"), ("W3", 0.95, 4096, "fp8_e4m3"), ("W5", 0.92, 4096, "auto")],
)
def test_a_preset_launches_as_the_others_were(name: str, memory: float, max_length: int, dtype: str) -> None:
    with sections_of(name, prefix_cache="off") as sections:
        config, _ = load_launch(sections)
    assert (config.cache.memory, config.cache.dtype, config.model.max_length) == (memory, dtype, max_length)
    assert config.model.loader == "dummy"
    assert not config.cache.prefix_caching
    if name == "W3":
        assert config.scheduler.max_sequences == 512


@pytest.mark.parametrize(("shape", "parameters"), [("8b", 8.03e9), ("0.6b", 0.596e9)], ids=["8b", "0.6b"])
def test_octavo_takes_the_shapes(shape: str, parameters: float) -> None:
    """Planned on the CPU, without weights: two bytes a parameter."""
    from octavo.run.memory import plan_memory

    with written(shape) as sections:
        model = {**sections["model"], "dtype": "bfloat16", "device": "cpu"}
        cache = {"blocks": 8}
        resolved = resolve(*load_launch({"model": model, "cache": cache}))
        weights = plan_memory(resolved).weights_bytes
    assert weights / 2 == pytest.approx(parameters, rel=0.002)


def test_the_70b_shape_has_the_weights_it_should() -> None:
    config = SHAPES["70b"].config
    hidden, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    kv = config["num_key_value_heads"] * config["head_dim"]
    linear = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    wide = 2 * 2 * config["vocab_size"] * hidden
    assert (linear + wide) / 2**30 == pytest.approx(67.67, abs=0.01)
    assert config["quantization_config"]["quant_method"] == "fp8"
