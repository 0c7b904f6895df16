"""The GGUF loader against files of the ``gguf`` package's writer, and against transformers' own reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from octavo.contracts.model import WeightSlot
from octavo.errors import CheckpointError
from octavo.loading.gguf import GgufLoader
from octavo.loading.profile import read_profile
from octavo.testing.tiny import tiny_llama

Q = gguf.GGMLQuantizationType
LLAMA_CPP = Path(__file__).parents[2] / "data" / "tiny-llama-Q4_K_M.gguf"
WRITABLE = [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0]
# Where the half-precision scales of a block lie, so that random bits stay finite numbers.
K_TYPES = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,)}


def load(kit: Any, path: Path, *, threads: int = 2, **how: Any) -> Any:
    profile = read_profile(str(path))
    model = kit.fake(profile, **how)
    GgufLoader(threads).load(model, profile, kit.quiet)
    return model


def transformers_reads(path: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny", tied=False, vocab=320)


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_each_type_is_dequantised(kit: Any, folder: Path, tmp_path: Path, kind: Q) -> None:
    path = kit.write_gguf(folder, tmp_path / "m.gguf", kind)
    weights = load(kit, path).weights()
    truth = load_file(folder / "model.safetensors")
    assert set(weights) == set(truth)
    for name, original in truth.items():
        # Quantisation works on rows, so it gives the same numbers before and after rows change places.
        stored = kind if original.ndim == 2 else Q.F32
        expected = gguf.dequantize(gguf.quantize(original.numpy(), stored), stored)
        assert torch.equal(weights[name], torch.from_numpy(np.array(expected))), name


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_tensors(kit: Any, tmp_path: Path, tied: bool) -> None:
    path = kit.write_gguf(tiny_llama(tmp_path / "m", tied=tied, kv_heads=1), tmp_path / "m.gguf", Q.Q8_0)
    expected = transformers_reads(path)
    model = load(kit, path)
    assert ("lm_head.weight" in model.weights()) is not tied
    for name, weight in model.weights().items():
        assert torch.equal(weight, expected[name]), name


def test_a_file_that_llama_cpp_wrote(kit: Any) -> None:
    """Q4_K and Q6_K, as its quantiser packs them."""
    weights, expected = load(kit, LLAMA_CPP).weights(), transformers_reads(LLAMA_CPP)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", list(K_TYPES), ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_k_types_in_pieces_equal_the_whole(kit: Any, tmp_path: Path, kind: Q, dtype: torch.dtype) -> None:
    """A matrix of more than one piece, from random bits; the package dequantises it in one go."""
    rng = np.random.default_rng(0)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (300 * 4, size), dtype=np.uint8)
    for at in K_TYPES[kind]:
        scales = rng.uniform(0.001, 0.01, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    raw = blocks.reshape(300, 4 * size)
    folder = tiny_llama(tmp_path / "m", layers=1, vocab=300, hidden=32)
    path = kit.write_gguf(
        folder,
        tmp_path / "m.gguf",
        change=lambda writer: writer.add_tensor("blk.0.ffn_gate_inp.weight", raw, raw_dtype=kind),
    )
    profile = read_profile(str(path))
    model = kit.fake(profile)
    target = torch.zeros(100, 500, dtype=dtype)
    shard = (slice(150, 250), slice(500, 1000))
    source = "model.layers.0.block_sparse_moe.gate.weight"  # the package knows this name, too
    model.slots().append(WeightSlot(source, (300, 1024), shard, target))
    GgufLoader(2).load(model, profile, kit.quiet)
    expected = torch.from_numpy(gguf.dequantize(raw, kind)).reshape(300, 1024)
    assert torch.equal(target, expected[shard].to(dtype))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", [Q.F32, Q.Q4_1], ids=lambda kind: kind.name)
def test_each_rank_gets_its_slice(kit: Any, folder: Path, tmp_path: Path, kind: Q, rank: int) -> None:
    path = kit.write_gguf(folder, tmp_path / "m.gguf", kind)
    whole, part = load(kit, path).weights(), load(kit, path, rank=rank, ranks=2)
    for slot in part.slots():
        assert torch.equal(slot.target, whole[slot.source][slot.shard]), slot.source


def test_biases_of_permuted_rows(kit: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", layers=1)
    bias = torch.arange(64, dtype=torch.float32)
    stored = bias.view(4, 2, 8).transpose(1, 2).reshape(-1).numpy()
    path = kit.write_gguf(
        folder, tmp_path / "m.gguf", change=lambda writer: writer.add_tensor("blk.0.attn_q.bias", stored)
    )
    profile = read_profile(str(path))
    assert profile.config["attention_bias"] is True
    model = kit.fake(profile)
    keep = [slot for slot in model.slots() if not slot.source.endswith(".bias") or ".q_proj" in slot.source]
    model.slots()[:] = keep
    GgufLoader(1).load(model, profile, kit.quiet)
    assert torch.equal(model.slot("model.layers.0.self_attn.q_proj.bias").target, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_threads_and_inference_mode(kit: Any, folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    path = kit.write_gguf(folder, tmp_path / "m.gguf", Q.Q4_0)
    reference = load(kit, path, threads=1).weights()
    with torch.inference_mode():
        made_inside = load(kit, path, threads=3, dtype=dtype).weights()
    for name, weight in reference.items():
        assert torch.equal(made_inside[name], weight.to(dtype)), name


def refusal(kit: Any, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(kit, path)
    return str(caught.value)


def test_truncated_files_name_the_tensor(kit: Any, folder: Path, tmp_path: Path) -> None:
    path = kit.write_gguf(folder, tmp_path / "m.gguf", Q.Q8_0)
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(kit, path)
    assert "truncated inside tensor" in message
    assert str(path) in message


def test_missing_and_unknown_tensors(kit: Any, folder: Path, tmp_path: Path) -> None:
    extra = np.ones((2, 2), dtype=np.float32)
    path = kit.write_gguf(folder, tmp_path / "a.gguf", change=lambda writer: writer.add_tensor("blk.0.odd", extra))
    assert "blk.0.odd" in refusal(kit, path)
    deeper = kit.write_gguf(folder, tmp_path / "b.gguf", change=lambda writer: writer.add_block_count(3))
    assert "model.layers.2.self_attn.q_proj.weight" in refusal(kit, deeper)


def test_wrong_shapes_say_both(kit: Any, folder: Path, tmp_path: Path) -> None:
    path = kit.write_gguf(folder, tmp_path / "m.gguf", change=lambda writer: writer.add_feed_forward_length(96))
    message = refusal(kit, path)
    assert "[128, 64]" in message
    assert "[96, 64]" in message


def test_quantised_slots_can_not_be_filled(kit: Any, folder: Path, tmp_path: Path) -> None:
    path = kit.write_gguf(folder, tmp_path / "m.gguf")
    profile = read_profile(str(path))
    model = kit.fake(profile)
    model.slot("model.norm.weight").target = torch.zeros(64, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="int8"):
        GgufLoader().load(model, profile, kit.quiet)


@pytest.mark.slow
@pytest.mark.model
def test_the_bundled_model_equals_transformers_reading(kit: Any) -> None:
    path = Path(read_profile("bundled:smollm2-135m-instruct").path)
    expected = transformers_reads(path)
    for name, weight in load(kit, path).weights().items():
        assert torch.equal(weight, expected[name]), name
