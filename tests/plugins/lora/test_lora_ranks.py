"""A linear layer with adapters, divided among ranks, equals the whole one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import CheckpointError
from octavo.layers import Embedding, Linear, LMHead, Part, Parts, Ranks
from octavo_lora.torch_backend import TorchLora

HIDDEN, HEADS, KV, INNER = 32, 32, 8, 48
SHAPES = {"q_proj": (HEADS, HIDDEN), "k_proj": (KV, HIDDEN), "v_proj": (KV, HIDDEN), "down_proj": (HIDDEN, INNER)}


class Unsummed(Ranks):
    """Leaves the sum over ranks to the test."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapts all but k_proj, with biases, at two ranks."""
    path, generator = tmp_path_factory.mktemp("ranks"), torch.Generator().manual_seed(3)
    tensors = {}
    for module, (outputs, inputs) in SHAPES.items():
        if module == "k_proj":
            continue
        rank = 2 if module == "v_proj" else 4
        for ending, shape in (("A.weight", (rank, inputs)), ("B.weight", (outputs, rank)), ("B.bias", (outputs,))):
            tensors[f"base_model.model.{module}.lora_{ending}"] = torch.randn(shape, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "lora_bias": True, "rank_pattern": {"v_proj": 2}}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def build(folder: Path, rank: int, size: int) -> SimpleNamespace:
    """Merged QKV (two ranks a key head) and a row-divided layer, with the adapter in slot 2 of 3."""
    lora = TorchLora(3, 8)
    parts = Parts(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=None,  # type: ignore[arg-type]
        ranks=Unsummed(rank, size),
        lora=lora,
    )
    copies = 2 if size > 1 else 1
    qkv = Linear(
        parts,
        [Part("q_proj", HEADS), Part("k_proj", KV, copies), Part("v_proj", KV, copies)],
        HIDDEN,
        bias=True,
    )
    down = Linear(parts, [Part("down_proj", HIDDEN)], INNER, bias=True, division="row")
    for layer in (qkv, down):
        for slot in layer.slots():
            seed = sum(map(ord, slot.source))
            whole = torch.randn(slot.shape, generator=torch.Generator().manual_seed(seed))
            slot.target.copy_(whole[slot.shard])
        layer.finalize()
    adapter = lora.read(str(folder))
    lora.load(2, adapter)
    host = np.array([0, 2, 2, 0, 2])
    lora.begin(torch.from_numpy(host), host)
    return SimpleNamespace(qkv=qkv, down=down, digest=adapter.digest)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(5, HIDDEN, generator=generator), torch.randn(5, INNER, generator=generator)


def test_column_division_with_shared_key_heads(folder: Path, inputs: Any) -> None:
    """Four ranks over two key heads: ranks 0 and 1 hold the first, 2 and 3 the second."""
    whole = build(folder, 0, 1).qkv(inputs[0])
    query, key, value = whole.split([HEADS, KV, KV], dim=1)
    for rank in range(4):
        part = build(folder, rank, 4).qkv(inputs[0])
        head = slice(rank // 2 * 4, rank // 2 * 4 + 4)
        expected = torch.cat((query[:, rank * 8 : rank * 8 + 8], key[:, head], value[:, head]), dim=1)
        torch.testing.assert_close(part, expected)


def test_row_division_adds_biases_once(folder: Path, inputs: Any) -> None:
    whole = build(folder, 0, 1)
    ranks = [build(folder, rank, 2) for rank in range(2)]
    half = INNER // 2
    parts = [one.down(inputs[1][:, at * half : at * half + half]) for at, one in enumerate(ranks)]
    # Each rank adds the layer's own bias behind the sum, which this test makes itself.
    torch.testing.assert_close(sum(parts) - ranks[0].down.bias, whole.down(inputs[1]))
    assert ranks[0].digest == ranks[1].digest == whole.digest


def test_the_base_model_of_slot_zero_is_untouched(folder: Path, inputs: Any) -> None:
    built = build(folder, 0, 1)
    adapted = built.qkv(inputs[0])
    plain = built.qkv.method.apply(built.qkv.weights, inputs[0], built.qkv.bias)
    assert torch.equal(adapted[[0, 3]], plain[[0, 3]])
    assert torch.equal(adapted[:, HEADS : HEADS + KV], plain[:, HEADS : HEADS + KV])  # k_proj is not adapted
    assert not torch.allclose(adapted[[1, 2, 4], :HEADS], plain[[1, 2, 4], :HEADS])


VOCAB = 51


class Kept(Unsummed):
    """Leaves joining the vocabulary's parts to the test as well."""

    def gather_last(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapts the embedding and brings a head of its own, with an adapter on it."""
    path, generator = tmp_path_factory.mktemp("vocabulary"), torch.Generator().manual_seed(4)
    shapes = {
        "embed_tokens.lora_embedding_A": (3, VOCAB),
        "embed_tokens.lora_embedding_B": (HIDDEN, 3),
        "lm_head.lora_A.weight": (3, HIDDEN),
        "lm_head.lora_B.weight": (VOCAB, 3),
        "lm_head.base_layer.weight": (VOCAB, HIDDEN),
    }
    tensors = {
        f"base_model.model.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 3}))
    return path


def build_ends(folder: Path, rank: int, size: int) -> tuple[Embedding, LMHead]:
    lora = TorchLora(2, 8)
    cpu = torch.device("cpu")
    parts = Parts(dtype=torch.float32, device=cpu, attention=None, ranks=Kept(rank, size), lora=lora)  # type: ignore[arg-type]
    embedding = Embedding(parts, "embed_tokens", VOCAB, HIDDEN)
    head = LMHead(parts, "lm_head", VOCAB, HIDDEN, None)
    for slot in (*embedding.slots(), *head.slots()):
        whole = torch.randn(slot.shape, generator=torch.Generator().manual_seed(len(slot.source)))
        slot.target.copy_(whole[slot.shard])
    head.finalize()
    lora.load(1, lora.read(str(folder)))
    host = np.array([0, 1, 1, 0, 1])
    lora.begin(torch.from_numpy(host), host)
    lora.begin_logits(host)
    return embedding, head


def test_embedding_and_head_divided_among_ranks(vocabulary: Path, inputs: Any) -> None:
    """51 tokens over four ranks: the last one holds fewer."""
    ids, (embedding, head) = torch.tensor([0, 13, 50, 7, 26]), build_ends(vocabulary, 0, 1)
    ranks = [build_ends(vocabulary, rank, 4) for rank in range(4)]
    torch.testing.assert_close(sum(one(ids) for one, _ in ranks), embedding(ids))
    logits = torch.cat([one(inputs[0]) for _, one in ranks], dim=1)[:, :VOCAB]
    torch.testing.assert_close(logits, head(inputs[0]))
    tensors = load_file(vocabulary / "adapter_model.safetensors")
    low, high = (tensors[f"base_model.model.embed_tokens.lora_embedding_{which}"] for which in "AB")
    expected = embedding.weight[ids] + torch.tensor([0.0, 1, 1, 0, 1])[:, None] * (low.T[ids] @ high.T)
    torch.testing.assert_close(embedding(ids), expected)


def test_dora_needs_whole_rows(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    for module, (outputs, _) in SHAPES.items():
        if module != "k_proj":
            tensors[f"base_model.model.{module}.lora_magnitude_vector"] = torch.ones(outputs)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    assert build(tmp_path, 0, 1).digest
    with pytest.raises(CheckpointError, match=r"down_proj\.lora_magnitude_vector' is a DoRA magnitude of a layer"):
        build(tmp_path, 0, 2)
