"""FP8 and INT8 checkpoints in every spelling, against a float64 model of the weights they stand for."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.errors import CheckpointError

HERE = Path(__file__).parent
KIT = SimpleNamespace(**runpy.run_path(str(HERE / "checkpoints.py")))
WRITE = SimpleNamespace(**runpy.run_path(str(HERE / "eight_bit_writers.py")))
IDS = [1, 5, 99, 200, 7, 7, 300, 41, 12]
MILD = {"layers": 1}


@pytest.mark.parametrize("name", WRITE.WRITERS)
def test_logits(name: str, tmp_path: Path) -> None:
    """On a CPU weights are decoded, and only INT8 quantises activations."""
    writer = WRITE.WRITERS[name]
    truth = KIT.make(tmp_path, writer.quantise, writer.config)
    found = KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS))
    assert found < (0.06 if "w8a8" in name else 2e-5)


@pytest.mark.parametrize("name", ["fp8 tensor", "fp8 blocks", "ct fp8 channel, token", "ct w8a8, weights shifted"])
def test_ranks_share_a_checkpoint(name: str, tmp_path: Path) -> None:
    writer = WRITE.WRITERS[name]
    KIT.make(tmp_path, writer.quantise, writer.config, heads=8, kv_heads=4, intermediate=512)
    alone = KIT.logits(tmp_path, IDS)
    for found in KIT.ranked(tmp_path, IDS, 2, tmp_path / "meet"):
        # INT8 activations are quantised by each rank's share of the inputs.
        assert KIT.error(found, alone) < (0.06 if "w8a8" in name else 1e-5)


def test_merged_layers_may_end_inside_a_block(tmp_path: Path) -> None:
    """Query, key and value of 192, 96 and 96 outputs: two blocks, one and one."""
    writer = WRITE.WRITERS["fp8 blocks"]
    truth = KIT.make(tmp_path, writer.quantise, writer.config, hidden=192, heads=6, kv_heads=3, head_dim=32)
    assert KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS)) < 2e-5


def test_ranks_refuse_to_cut_blocks(tmp_path: Path) -> None:
    from octavo.model.parallel import Ranks

    writer = WRITE.WRITERS["fp8 blocks"]
    KIT.make(tmp_path, writer.quantise, writer.config)
    with pytest.raises(CheckpointError, match=r"whole blocks of 128: lower executor.tensor_parallel"):
        KIT.logits(tmp_path, IDS, Ranks(0, 2))


def test_layers_left_out_stay_as_they_are(tmp_path: Path) -> None:
    config = {**WRITE.FP8, "ignored_layers": ["lm_head", "model.layers.0.mlp", "re:.*1\\.self_attn.*"]}

    def quantise(module: str, weight: torch.Tensor) -> Any:
        out = "0.mlp" in module or "1.self_attn" in module or module == "lm_head"
        return WRITE.plain(weight) if out else WRITE.fp8_tensor(weight)

    truth = KIT.make(tmp_path, quantise, config)
    assert KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS)) < 2e-5


def test_groups_by_name_and_by_class(tmp_path: Path) -> None:
    """Attention in FP8, the rest in INT8: targets that name a layer go before a class."""
    config = WRITE.compressed(
        "mixed-precision", WRITE.numbers("float", "channel"), WRITE.TOKEN, ["re:.*self_attn.*_proj"]
    )
    other = WRITE.compressed("int-quantized", WRITE.numbers("int", "channel"), None)["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = other

    def quantise(module: str, weight: torch.Tensor) -> Any:
        if module == "lm_head":
            return WRITE.plain(weight)
        return WRITE.fp8_channel(weight) if "self_attn" in module else WRITE.int8(weight)

    truth = KIT.make(tmp_path, quantise, config)
    assert KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS)) < 2e-5


Q = "model.layers.0.self_attn.q_proj"
WRONG = {
    "scale missing": ("fp8 tensor", lambda t: t.pop(f"{Q}.weight_scale"), f"{Q}.weight_scale is missing"),
    "static scale missing": (
        "fp8 tensor, static",
        lambda t: t.pop(f"{Q}.input_scale"),
        f"{Q}.input_scale is missing; a static activation scale",
    ),
    "blocks of another shape": (
        "fp8 blocks",
        lambda t: t.update({f"{Q}.weight_scale_inv": torch.ones(3, 2)}),
        r"weight_scale_inv has shape \[3, 2\]; the FP8 weight \[256, 256\] needs \[2, 2\]",
    ),
    "not e4m3": (
        "fp8 tensor",
        lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].float().to(torch.float8_e5m2)}),
        "stored as float8_e5m2; an FP8 weight needs float8_e4m3fn",
    ),
    "other shape": (
        "ct w8a8",
        lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:, :64].clone()}),
        r"q_proj.weight has shape \[256, 64\]; an INT8 weight needs \[256, 256\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoints_are_refused_by_the_tensor_s_name(case: str, tmp_path: Path) -> None:
    name, edit, message = WRONG[case]
    writer = WRITE.WRITERS[name]
    KIT.make(tmp_path, writer.quantise, writer.config, **MILD)
    KIT.change(tmp_path, edit)
    with pytest.raises(CheckpointError, match=message):
        KIT.logits(tmp_path, IDS)


CONFIGS = {
    "bits": ({"weights": WRITE.numbers("int", "channel", bits=5)}, "with weights int5 a channel, activations"),
    "w4a8": ({"weights": WRITE.numbers("int", "group", bits=4, group_size=32)}, "int4 a group, activations"),
    "strategy": ({"weights": WRITE.numbers("int", "mystery")}, "weights is not understood"),
    "targets": ({"targets": "Linear"}, "targets must be a list"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_configurations_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = CONFIGS[case]
    config = WRITE.compressed("int-quantized", WRITE.numbers("int", "channel"), WRITE.INT_TOKEN)
    config["config_groups"]["group_0"] |= changes
    KIT.make(tmp_path, WRITE.WRITERS["ct w8a8"].quantise, config, **MILD)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        KIT.logits(tmp_path, IDS)


@pytest.mark.parametrize("key", ["transform_config", "sparsity_config"])
def test_transforms_and_sparse_weights_are_refused(key: str, tmp_path: Path) -> None:
    writer = WRITE.WRITERS["ct w8a8"]
    KIT.make(tmp_path, writer.quantise, {**writer.config, key: {"format": "sparse-24-bitmask"}}, **MILD)
    with pytest.raises(CheckpointError, match=key):
        KIT.logits(tmp_path, IDS)


def test_parts_of_a_merged_layer_must_agree(tmp_path: Path) -> None:
    config = {**WRITE.FP8, "ignored_layers": ["lm_head", "model.layers.0.self_attn.k_proj"]}
    KIT.make(tmp_path, WRITE.WRITERS["fp8 tensor"].quantise, config, **MILD)
    with pytest.raises(CheckpointError, match=r"q_proj and .*k_proj are computed as one layer"):
        KIT.logits(tmp_path, IDS)


@pytest.mark.parametrize("weights", ["per_channel", "per_tensor"])
def test_fp8_made_while_loading(weights: str, tmp_path: Path) -> None:
    truth = KIT.make(tmp_path, lambda module, weight: WRITE.plain(weight), {})
    for name, weight in truth.items():
        if "_proj" in name:
            made = WRITE.fp8_channel if weights == "per_channel" else WRITE.fp8_tensor
            truth[name] = made(weight.float())[1]
    chosen = {"use": "fp8", "options": {"weights": weights}}
    found = KIT.logits(tmp_path, IDS, quantization=chosen)
    assert KIT.error(found, KIT.expected(tmp_path, truth, IDS)) < 2e-5


def test_options_that_a_checkpoint_decides_are_refused(tmp_path: Path) -> None:
    from octavo.errors import ConfigError

    writer = WRITE.WRITERS["fp8 tensor"]
    KIT.make(tmp_path, writer.quantise, writer.config, **MILD)
    with pytest.raises(ConfigError, match="weights"):
        KIT.logits(tmp_path, IDS, quantization={"use": "fp8", "options": {"weights": "per_tensor"}})


@pytest.mark.parametrize("spelling", ["{}.k_scale {}.v_scale", "{}.k_proj.k_scale {}.v_proj.v_scale", ""])
def test_scales_of_the_cache(spelling: str, tmp_path: Path) -> None:
    """A checkpoint that brings scales gets an FP8 cache; its answers are those of keys and values rounded so."""
    writer = WRITE.WRITERS["ct fp8 channel, token"]
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    KIT.make(tmp_path, writer.quantise, {**writer.config, "kv_cache_scheme": scheme})

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            for name, scale in zip(spelling.split(), (0.02, 0.05), strict=False):
                tensors[name.format(f"model.layers.{layer}.self_attn")] = torch.tensor([scale * (layer + 1)])

    KIT.change(tmp_path, add)
    decided = KIT.resolved(tmp_path)
    assert decided.context.kv_dtype == "fp8_e4m3"
    scheme = decided.choices["quantization"]
    built = scheme.build(decided.context, scheme.options)
    wanted = (0.04, 0.1) if spelling else (1.0, 1.0)
    assert built.kv_scales("model.layers.1.self_attn") == pytest.approx(wanted)
    assert KIT.logits(tmp_path, IDS).isfinite().all()


def test_wrong_scales_of_the_cache_are_refused(tmp_path: Path) -> None:
    writer = WRITE.WRITERS["fp8 tensor"]
    KIT.make(tmp_path, writer.quantise, writer.config, **MILD)
    KIT.change(tmp_path, lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.tensor(0.0)}))
    with pytest.raises(CheckpointError, match=r"self_attn.k_scale is 0.0; a scale must be greater than 0"):
        KIT.logits(tmp_path, IDS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the same cases on the device")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_under_the_interpreter(dtype: str) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "fp8_cases.py"), "cpu", dtype],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
