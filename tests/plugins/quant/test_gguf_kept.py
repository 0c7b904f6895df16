"""GGUF weights kept quantised: blocks against the ``gguf`` package, and whole files against its dequantisation."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from octavo.attention.torch_paged import TorchAttention
from octavo.checkpoint import gguf_types
from octavo.contracts.linear import LinearSpec
from octavo.loading.gguf import GgufLoader
from octavo.loading.profile import read_profile
from octavo.model.llama import build_llama
from octavo.model.parallel import Ranks
from octavo.model.parts import Parts
from octavo.records import Context, DeviceProfile
from octavo_quant.grouped import dequantise
from octavo_quant.integer.gguf import GgufLinear, GgufScheme
from octavo_quant.integer.gguf_blocks import BLOCK_TYPES, decode
from octavo_quant.integer.plugin import octavo_quantizations

TESTS = Path(__file__).parents[2]
FILE = TESTS / "data/tiny-llama-Q4_K_M.gguf"
KIT = runpy.run_path(str(TESTS / "core/model/conftest.py"))
# Where the half-precision numbers of a block lie, so that random bits stay finite.
HALVES = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (208,)}


@pytest.mark.parametrize("name", sorted(BLOCK_TYPES))
def test_blocks(name: str) -> None:
    kind, random = BLOCK_TYPES[name], np.random.default_rng(0)
    raw = random.integers(0, 256, (6, 4 * kind.nbytes), dtype=np.uint8)
    blocks = raw.reshape(-1, kind.nbytes)
    for at in HALVES.get(name, (0, 2)):
        blocks[:, at : at + 2] = random.normal(size=(len(blocks), 1)).astype(np.float16).view(np.uint8)
        blocks[5, at : at + 2] = 0
    codes, scales, zeros = decode(torch.from_numpy(raw), kind)
    expected = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[name]))
    torch.testing.assert_close(dequantise(codes, scales, zeros, kind.bits, kind.group), expected)


def test_a_scale_of_nothing_leaves_the_minimum() -> None:
    block = np.full((1, 20), 0x37, np.uint8)
    block[0, :4] = np.array([0.0, -0.75], np.float16).view(np.uint8)
    codes, scales, zeros = decode(torch.from_numpy(block), BLOCK_TYPES["Q4_1"])
    assert (dequantise(codes, scales, zeros, 4, 32) == -0.75).all()


def load(path: Path, scheme: Any, ranks: Ranks | None = None) -> Any:
    profile = read_profile(str(path))
    device = DeviceProfile(type="cpu", index=0, name="cpu", capability=None, total_memory=0, free_memory=0, cores=1)
    ctx = Context(
        model=profile,
        device=device,
        dtype="float32",
        kv_dtype="float32",
        block_size=16,
        max_length=profile.max_length,
        max_sequences=4,
        max_batch_tokens=512,
    )
    attention = TorchAttention(ctx)
    parts = Parts(
        dtype=torch.float32, device=torch.device("cpu"), attention=attention, scheme=scheme, ranks=ranks or Ranks()
    )
    model = build_llama(ctx, parts)
    GgufLoader(2).load(model, profile, lambda done, total, name: None)
    model.finalize()
    model.backend = attention  # type: ignore[attr-defined]
    return model


def test_a_file_of_several_types() -> None:
    profile = read_profile(str(FILE))
    types = gguf_types(profile)
    scheme = GgufScheme(types, profile.tied_embeddings)
    kept, plain = load(FILE, scheme), load(FILE, None)
    methods = [layer.attention.qkv.method for layer in kept._layers] + [
        layer.mlp.down.method for layer in kept._layers
    ]
    used = {kind for method in methods if isinstance(method, GgufLinear) for kind in method.kinds}
    assert {"Q4_K", "Q6_K"} <= used, types("model.layers.0.self_attn.q_proj.weight")
    ids = [1, 70, 80, 90, 100, 7, 200]
    found, expected = KIT["logits"](kept, ids), KIT["logits"](plain, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_outputs_divided_among_ranks() -> None:
    profile = read_profile(str(FILE))
    scheme = GgufScheme(gguf_types(profile), profile.tied_embeddings)
    whole = load(FILE, scheme)._layers[0].mlp.gate_up
    x = torch.randn(3, profile.hidden_size)
    halves = [load(FILE, scheme, Ranks(rank, 2))._layers[0].mlp.gate_up for rank in range(2)]
    gates, ups = zip(*(half.method.apply(half.weights, x, None).chunk(2, 1) for half in halves), strict=True)
    torch.testing.assert_close(torch.cat([*gates, *ups], 1), whole(x))


def test_layers_that_can_not_be_kept_are_dequantised() -> None:
    types = {"a.weight": "IQ2_XS", "b.weight": "F16", "c.weight": "Q4_K"}
    scheme = GgufScheme(types.get, tied=False)

    def method(name: str, width: int) -> Any:
        spec = LinearSpec(
            name=name, in_features=width, out_parts=(8,), bias=False, dtype=torch.float32, device="cpu"
        )
        return scheme.method_for(spec)

    assert method("a", 256) is None
    assert method("b", 256) is None
    assert method("missing", 256) is None
    assert method("c", 384) is None
    assert method("c", 512) is not None


def test_it_is_taken_on_a_gpu_alone() -> None:
    record = next(record for record in octavo_quantizations() if record.name == "gguf")
    profile = read_profile(str(FILE))
    assert record.detect(profile)

    def supports(kind: str, capability: tuple[int, int] | None) -> str | None:
        device = DeviceProfile(
            type=kind, index=0, name=kind, capability=capability, total_memory=0, free_memory=0, cores=1
        )
        return record.supports(
            Context(
                model=profile,
                device=device,
                dtype="bfloat16",
                kv_dtype="bfloat16",
                block_size=16,
                max_length=16,
                max_sequences=1,
                max_batch_tokens=16,
            )
        )

    assert supports("cuda", (9, 0)) is None
    assert "dequantised while they load" in (supports("cpu", None) or "")
    assert supports("cuda", (7, 5)) is not None
