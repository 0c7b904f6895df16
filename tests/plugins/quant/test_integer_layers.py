"""Layers of GPTQ, AWQ and auto-round checkpoints, alone, merged and divided among ranks, against float64."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.contracts.model import filled
from octavo.errors import CheckpointError
from octavo.loading.safetensors_files import HeaderEntry
from octavo.model.layers import LMHead
from octavo.model.linear import Linear, Part
from octavo.model.parallel import Ranks
from octavo.model.parts import Parts
from octavo.records import ModelProfile
from octavo_quant.integer.config import read_settings
from octavo_quant.integer.scheme import IntegerScheme
from octavo_quant.stored import Stored


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


writers = _load("integer_writers")
NAMES = {torch.int32: "I32", torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}


def profile(config: dict) -> ModelProfile:
    return ModelProfile(
        path="model",
        name="model",
        format="config",
        architecture="LlamaForCausalLM",
        config={},
        hidden_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        vocab_size=1,
        max_length=1,
        dtype="float32",
        tied_embeddings=False,
        eos_ids=(),
        quantization=config,
        generation={},
        digest="",
    )


def scheme(config: dict, tensors: dict[str, torch.Tensor]) -> IntegerScheme:
    entries = {
        name: HeaderEntry(name=name, dtype=NAMES[t.dtype], shape=tuple(t.shape), file=Path("f"), start=0, nbytes=0)
        for name, t in tensors.items()
    }
    model = profile(config)
    return IntegerScheme(Stored(model, entries), read_settings(model))


def build(
    config: dict,
    tensors: dict[str, torch.Tensor],
    parts: dict[str, int],
    width: int,
    ranks: Ranks | None = None,
    division: str = "column",
) -> Linear:
    """A layer merged of ``parts``, loaded."""
    shared = Parts(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=None,
        scheme=scheme(config, tensors),
        ranks=ranks or Ranks(),
    )
    linear = Linear(shared, [Part(*each) for each in parts.items()], width, bias=False, division=division)
    for slot in linear.slots():
        stored = tensors[slot.source]
        assert stored.shape == slot.shape, slot.source
        with filled(slot):
            slot.target.copy_(stored[slot.shard])
    linear.finalize()
    return linear


def named(module: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{module}.{name}": tensor for name, tensor in tensors.items()}


def outputs(linear: Linear | LMHead, x: torch.Tensor) -> torch.Tensor:
    return linear.method.apply(linear.weights, x, None).double()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def gptq_config(bits: int, group: int, **more) -> dict:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": False, **more}


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "act_order", "version"),
    [
        (4, 32, False, False, 1),
        (4, 64, True, True, 1),
        (4, -1, False, False, 2),
        (8, 32, False, True, 1),
        (8, -1, True, False, 1),
        (3, 32, False, False, 1),
        (3, 64, False, True, 2),
        (2, 64, False, False, 1),
        (2, 32, True, False, 2),
    ],
)
def test_gptq(bits: int, group: int, symmetric: bool, act_order: bool, version: int) -> None:
    torch.manual_seed(bits)
    layer = writers.quantise(torch.randn(64, 128), bits, group, symmetric=symmetric, act_order=act_order)
    config = gptq_config(bits, group, desc_act=act_order)
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    x = torch.randn(5, 128)
    for with_order in (True, False) if not act_order else (True,):
        tensors = named("m.o_proj", writers.gptq(layer, version=version, with_order=with_order))
        close(outputs(build(config, tensors, {"m.o_proj": 64}, 128), x), x.double() @ layer.weight.T)


@pytest.mark.parametrize("packed", [True, False])
def test_the_memory_plan_counts_what_stays(packed: bool) -> None:
    layer = writers.quantise(torch.randn(64, 128), 4, 32)
    tensors = named("m", writers.gptq(layer))
    chosen = replace(scheme(gptq_config(4, 32), tensors), packed=packed)
    shared = Parts(dtype=torch.float32, device=torch.device("meta"), attention=None, scheme=chosen)
    linear = Linear(shared, [Part("m", 64)], 128, bias=False)
    kept = sum(slot.target.nbytes * slot.kept for slot in linear.slots())
    assert kept == pytest.approx(64 * 128 // 2 + 64 * 4 * 4 if packed else 64 * 128 * 4)


def test_zero_point_zero_of_version_one() -> None:
    layer = writers.quantise(torch.rand(32, 32), 4, 32)  # nothing negative: all zero points are 0, stored as 15
    assert (layer.zeros == 0).all()
    x = torch.randn(3, 32)
    linear = build(gptq_config(4, 32), named("m", writers.gptq(layer)), {"m": 32}, 32)
    close(outputs(linear, x), x.double() @ layer.weight.T)


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@pytest.mark.parametrize(("group", "padded"), [(32, 4), (64, 2), (128, 1), (-1, 1)])
def test_awq(group: int, padded: int, version: str) -> None:
    layer = writers.quantise(torch.randn(64, 256), 4, group)
    written = writers.awq(layer) if version == "gemm" else writers.awq_gemv(layer, padded)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version, "zero_point": True}
    x = torch.randn(5, 256)
    close(outputs(build(config, named("m", written), {"m": 64}, 256), x), x.double() @ layer.weight.T)


def merged(act_order: bool, seed: int = 0) -> dict:
    torch.manual_seed(seed)
    sizes = {"m.q_proj": 64, "m.k_proj": 32, "m.v_proj": 32}
    return {
        name: writers.quantise(torch.randn(rows, 128) * scale, 4, 32, act_order=act_order, seed=index)
        for index, ((name, rows), scale) in enumerate(zip(sizes.items(), (1.0, 30.0, 0.05), strict=True))
    }


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_merged_layers_of_different_scales_and_orders(ranks: int, act_order: bool) -> None:
    layers = merged(act_order)
    tensors = {k: v for name, layer in layers.items() for k, v in named(name, writers.gptq(layer)).items()}
    x = torch.randn(4, 128)
    sizes = {name: len(layer.codes) for name, layer in layers.items()}
    for rank in range(ranks):
        linear = build(gptq_config(4, 32, desc_act=act_order), tensors, sizes, 128, Ranks(rank, ranks))
        mine = [
            layer.weight[len(layer.codes) // ranks * rank :][: len(layer.codes) // ranks]
            for layer in layers.values()
        ]
        close(outputs(linear, x), x.double() @ torch.cat(mine).T)


@pytest.mark.parametrize("form", ["gptq", "gptq-3", "gptq-act-order", "gptq-whole", "awq", "gemv"])
def test_inputs_divided_among_ranks(form: str) -> None:
    torch.manual_seed(1)
    group = -1 if form == "gptq-whole" else 32
    bits = 3 if form == "gptq-3" else 4
    layer = writers.quantise(torch.randn(64, 512), bits, group, act_order=form == "gptq-act-order")
    config = gptq_config(bits, group, desc_act=form == "gptq-act-order")
    written = writers.gptq(layer)
    if form in ("awq", "gemv"):
        config = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "version": "gemm" if form == "awq" else form,
        }
        written = writers.awq(layer) if form == "awq" else writers.awq_gemv(layer, 4)
    if form == "gemv":
        layer = writers.quantise(torch.randn(64, 1024), 4, 32)
        written = writers.awq_gemv(layer, 4)
    width = layer.codes.shape[1]
    x = torch.randn(3, width)
    total = torch.zeros(3, 64, dtype=torch.float64)
    for rank in range(2):
        linear = build(config, named("m", written), {"m": 64}, width, Ranks(rank, 2), "row")
        total += outputs(linear, x[:, rank * width // 2 :][:, : width // 2])
    close(total, x.double() @ layer.weight.T)


@pytest.mark.parametrize("ranks", [1, 2])
def test_output_layer_divided_by_tokens(ranks: int) -> None:
    torch.manual_seed(2)
    layer = writers.quantise(torch.randn(96, 64), 4, 32)
    tensors = named("lm_head", writers.gptq(layer))
    x = torch.randn(3, 64)
    found = []
    for rank in range(ranks):
        shared = Parts(
            dtype=torch.float32,
            device=torch.device("cpu"),
            attention=None,
            scheme=scheme(gptq_config(4, 32, lm_head=True), tensors),
            ranks=Ranks(rank, ranks),
        )
        head = LMHead(shared, "lm_head", 96, 64, None)
        for slot in head.slots():
            assert slot.shape == tensors[slot.source].shape
            with filled(slot):
                slot.target.copy_(tensors[slot.source][slot.shard])
        head.finalize()
        found.append(outputs(head, x))
    close(torch.cat(found, 1), x.double() @ layer.weight.T)


def test_output_layer_of_packs_that_ranks_would_cut() -> None:
    layer = writers.quantise(torch.randn(40, 64), 4, 32)  # 20 tokens a rank; zero points are packed by 8
    shared = Parts(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=None,
        scheme=scheme(gptq_config(4, 32, lm_head=True), named("lm_head", writers.gptq(layer))),
        ranks=Ranks(1, 2),
    )
    with pytest.raises(ValueError, match="40 tokens can't be divided among 2 ranks"):
        LMHead(shared, "lm_head", 40, 64, None).slots()


def test_dynamic_overrides() -> None:
    four, eight = writers.quantise(torch.randn(32, 64), 4, 32), writers.quantise(torch.randn(32, 64), 8, 64)
    config = gptq_config(
        4, 32, dynamic={"-:.*skipped.*": {}, "+:.*\\.down.*": {"bits": 8, "group_size": 64}, ".*\\.same": {}}
    )
    plain = {"a.skipped.weight": torch.zeros(32, 64)}
    x = torch.randn(2, 64)
    for name, layer in (("a.up", four), ("a.down", eight), ("a.same", four)):
        close(
            outputs(build(config, named(name, writers.gptq(layer)), {name: 32}, 64), x), x.double() @ layer.weight.T
        )
    assert scheme(config, plain).settings_of("a.skipped") is None


def test_auto_round_overrides() -> None:
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"}
    config |= {"block_name_to_quantize": "model.layers", "extra_config": {"model.layers.0.k": {"bits": 16}}}
    settings = read_settings(profile(config))
    assert settings("model.layers.0.q").layout == "awq"
    assert settings("model.layers.0.k") is None
    assert settings("lm_head") is None
    gptq = config | {"packing_format": "auto_round:auto_gptq", "extra_config": {r".*\.down": {"bits": 8}}}
    assert read_settings(profile(gptq))("model.layers.3.down").bits == 8
    assert settings("model.layers.0.k.more") is None  # a path stands for what is below it
    raw = read_settings(profile(config | {"packing_format": "auto_round", "sym": False}))
    assert raw("model.layers.0.q").layout == "gptq_v2"  # zero points as they are
    layer = writers.quantise(torch.randn(32, 64), 4, 32, symmetric=True)
    tensors = named("model.layers.0.q", writers.gptq(layer, with_order=False))
    x = torch.randn(2, 64)
    close(outputs(build(gptq, tensors, {"model.layers.0.q": 32}, 64), x), x.double() @ layer.weight.T)


def test_layers_left_out() -> None:
    config = gptq_config(4, 32, modules_in_block_to_quantize=[["self_attn.q_proj"], ["mlp.up_proj"]])
    settings = read_settings(profile(config))
    assert settings("model.layers.0.mlp.up_proj") is not None
    assert settings("model.layers.0.mlp.down_proj") is None
    assert settings("lm_head") is None
    assert read_settings(profile(config | {"lm_head": True}))("lm_head") is not None
    assert read_settings(profile(gptq_config(4, 32, modules_to_not_convert=["mlp"])))("model.mlp.up_proj") is None


def refused(config: dict, change, match: str, ranks: Ranks | None = None) -> None:
    layer = writers.quantise(torch.randn(32, 128), 4, 64)
    tensors = named("m.o_proj", writers.gptq(layer))
    change(tensors)
    with pytest.raises(CheckpointError, match=match):
        build(config, tensors, {"m.o_proj": 32}, 128, ranks, "row")


def test_wrong_checkpoints_are_refused_by_tensor_and_reason() -> None:
    config = gptq_config(4, 64)
    refused(config, lambda t: t.pop("m.o_proj.scales"), r"m\.o_proj\.scales is missing; a 4-bit GPTQ weight")
    refused(config, lambda t: t.pop("m.o_proj.qzeros"), r"m\.o_proj\.qzeros is missing")
    refused(
        config,
        lambda t: t.update({"m.o_proj.scales": torch.ones(3, 32).half()}),
        r"m\.o_proj\.scales has shape \[3, 32\]; .* needs \[2, 32\]",
    )
    refused(
        config,
        lambda t: t.update({"m.o_proj.qweight": torch.ones(16, 32)}),
        r"qweight is stored as float32; .* int32",
    )
    refused(gptq_config(4, 48), lambda t: None, r"has 128 inputs, which groups of 48 don't divide")
    refused(gptq_config(5, 64), lambda t: None, r"bits is 5; gptq is read with 2, 3, 4, 8")
    refused(gptq_config(4, 0), lambda t: None, r"group_size is 0")
    refused(gptq_config(4, 64, checkpoint_format="marlin"), lambda t: None, r"checkpoint_format is 'marlin'")
    refused(config, lambda t: t["m.o_proj.g_idx"].fill_(7), r"g_idx names groups outside of the 2")
    awq = {"quant_method": "awq", "bits": 8, "group_size": 64}
    refused(awq, lambda t: None, r"bits is 8; awq is read with 4")
    refused({**awq, "bits": 4, "version": "marlin"}, lambda t: None, r"version is 'marlin'")


def test_shares_of_ranks_that_cut_groups_are_refused() -> None:
    layer = writers.quantise(torch.randn(32, 192), 4, 64)
    with pytest.raises(CheckpointError, match="share of 96 is not a whole number"):
        build(gptq_config(4, 64), named("m", writers.gptq(layer)), {"m": 32}, 192, Ranks(0, 2), "row")


def test_merged_layers_must_agree() -> None:
    layers = merged(False)
    tensors = {k: v for name, layer in layers.items() for k, v in named(name, writers.gptq(layer)).items()}
    config = gptq_config(4, 32, dynamic={".*k_proj": {"bits": 8}})
    with pytest.raises(CheckpointError, match=r"m\.q_proj and m\.k_proj are computed as one layer"):
        build(config, tensors, {name: len(layer.codes) for name, layer in layers.items()}, 128)
