"""The safetensors loader against files that safetensors' own writer made, whole and damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.contracts.model import WeightSlot
from octavo.errors import CheckpointError
from octavo.loading.profile import read_profile
from octavo.loading.safetensors import SafetensorsLoader
from octavo.records import ModelProfile
from octavo.testing.tiny import tiny_llama


def load(kit: Any, folder: Path, **how: Any) -> Any:
    profile = read_profile(str(folder))
    model = kit.fake(profile, **how)
    SafetensorsLoader().load(model, profile, kit.quiet)
    return model


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("how", [{"tied": False, "bias": True}, {}])
def test_every_tensor_arrives(kit: Any, tmp_path: Path, shards: int, how: dict[str, bool]) -> None:
    folder = tiny_llama(tmp_path / "m", shards=shards, kv_heads=1, **{"tied": True, "bias": False, **how})
    if how:
        drop(folder, lambda name: name.endswith(".bias") and ".mlp." in name, shards)
    model, truth = load(kit, folder), everything(folder)
    assert set(model.weights()) == set(truth)
    for name, weight in model.weights().items():
        assert torch.equal(weight, truth[name]), name
    assert all(slot.loaded for slot in model.slots())


def drop(folder: Path, which: Callable[[str], bool], shards: int = 1) -> None:
    """Rewrite the files without some tensors."""
    for path in folder.glob("*.safetensors"):
        save_file({name: value for name, value in load_file(path).items() if not which(name)}, path)
    index = folder / "model.safetensors.index.json"
    if shards > 1:
        value = json.loads(index.read_text())
        value["weight_map"] = {name: file for name, file in value["weight_map"].items() if not which(name)}
        index.write_text(json.dumps(value))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_reads_its_slice(kit: Any, tmp_path: Path, rank: int) -> None:
    folder = tiny_llama(tmp_path / "m", tied=False)
    model, truth = load(kit, folder, rank=rank, ranks=2), everything(folder)
    for slot in model.slots():
        assert torch.equal(slot.target, truth[slot.source][slot.shard]), slot.source
    assert model.slot("lm_head.weight").target.shape == (160, 64)
    assert model.slot("model.layers.0.self_attn.o_proj.weight").target.shape == (64, 32)


def test_floats_are_converted(kit: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", dtype="float16")
    model = load(kit, folder, dtype=torch.bfloat16)
    for name, weight in everything(folder).items():
        assert torch.equal(model.weights()[name], weight.bfloat16())


def test_progress_counts_to_the_end(kit: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    profile = read_profile(str(folder))
    seen: list[tuple[int, int, str]] = []
    SafetensorsLoader().load(kit.fake(profile), profile, lambda done, total, name: seen.append((done, total, name)))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1] == sum(weight.nbytes for weight in everything(folder).values())
    assert {name for _, _, name in seen} == set(everything(folder))


def test_a_tied_output_layer_may_be_stored(kit: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    weights = everything(folder)
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors"
    )
    assert "lm_head.weight" not in load(kit, folder).weights()


def test_tensors_the_architecture_ignores(kit: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**everything(folder), **extra}, folder / "model.safetensors")
    assert all(slot.loaded for slot in load(kit, folder).slots())


class Wrong:
    """A loaded profile whose files or slots are then spoilt."""

    def __init__(self, kit: Any, folder: Path) -> None:
        self.kit, self.folder = kit, folder
        self.profile: ModelProfile = read_profile(str(folder))
        self.model = kit.fake(self.profile)

    def rewrite(self, **changes: torch.Tensor | None) -> None:
        weights: dict[str, Any] = {**everything(self.folder), **changes}
        save_file(
            {name: value for name, value in weights.items() if value is not None}, self.folder / "model.safetensors"
        )

    def refusal(self) -> str:
        with pytest.raises(CheckpointError) as caught:
            SafetensorsLoader().load(self.model, self.profile, self.kit.quiet)
        return str(caught.value)

    def untouched(self) -> bool:
        return all(bool(torch.isnan(weight).all()) for weight in self.model.weights().values())


@pytest.fixture
def wrong(kit: Any, tmp_path: Path) -> Wrong:
    return Wrong(kit, tiny_llama(tmp_path / "m", layers=1))


def test_a_missing_tensor_is_named(wrong: Wrong) -> None:
    wrong.rewrite(**{"model.layers.0.mlp.up_proj.weight": None})
    assert "model.layers.0.mlp.up_proj.weight is missing" in wrong.refusal()
    assert wrong.untouched()


def test_an_unknown_tensor_is_named(wrong: Wrong) -> None:
    wrong.rewrite(**{"model.extra.weight": torch.ones(2)})
    message = wrong.refusal()
    assert "model.extra.weight" in message
    assert "model.safetensors" in message
    assert wrong.untouched()


def test_quantised_tensors_without_a_scheme_are_explained(wrong: Wrong) -> None:
    wrong.rewrite(**{"model.layers.0.mlp.up_proj.qweight": torch.ones(2, dtype=torch.int32)})
    assert "quantised" in wrong.refusal()


def test_a_wrong_shape_says_both(wrong: Wrong) -> None:
    wrong.rewrite(**{"model.norm.weight": torch.ones(63)})
    message = wrong.refusal()
    assert "model.norm.weight has shape [63]" in message
    assert "[64]" in message
    assert wrong.untouched()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_types_are_not_taken_for_floats(wrong: Wrong, dtype: torch.dtype) -> None:
    wrong.rewrite(**{"model.norm.weight": torch.ones(64).to(dtype)})
    message = wrong.refusal()
    assert "model.norm.weight" in message
    assert str(dtype).removeprefix("torch.") in message


def test_exact_slots_take_only_their_own_type(wrong: Wrong) -> None:
    wrong.model.slot("model.norm.weight").exact = True
    wrong.rewrite(**{"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)})
    assert "bfloat16" in wrong.refusal()


def test_packed_integers_and_scalars(kit: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", layers=1)
    packed, scale = torch.randint(-(2**31), 2**31 - 1, (6, 4), dtype=torch.int32), torch.tensor(0.5)
    save_file({**everything(folder), "a.qweight": packed, "a.scale": scale}, folder / "model.safetensors")
    profile = read_profile(str(folder))
    model = kit.fake(profile)
    half = WeightSlot(
        "a.qweight", (6, 4), (slice(0, 6), slice(2, 4)), torch.zeros(6, 2, dtype=torch.int32), exact=True
    )
    one = WeightSlot("a.scale", (), (), torch.zeros(()))
    absent = WeightSlot("a.bias", (3,), (slice(0, 3),), torch.zeros(3), optional=True)
    model.slots().extend([half, one, absent])
    SafetensorsLoader().load(model, profile, kit.quiet)
    assert torch.equal(half.target, packed[:, 2:])
    assert one.target.item() == 0.5
    assert not absent.loaded


def test_a_file_truncated_after_the_profile_was_read(wrong: Wrong) -> None:
    path = wrong.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    message = wrong.refusal()
    assert str(path) in message
    assert "truncated" in message


@pytest.mark.parametrize(
    "content", [b"", b"1234567", struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"nope", b"\0" * 64]
)
def test_files_that_are_not_safetensors(wrong: Wrong, content: bytes) -> None:
    (wrong.folder / "model.safetensors").write_bytes(content)
    assert str(wrong.folder / "model.safetensors") in wrong.refusal()


def test_headers_that_contradict_themselves(wrong: Wrong) -> None:
    path = wrong.folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"][1] += 4  # overlaps its neighbour
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert str(path) in wrong.refusal()


def test_the_same_tensor_twice(wrong: Wrong) -> None:
    (wrong.folder / "model.safetensors").rename(wrong.folder / "a.safetensors")
    save_file({"model.norm.weight": torch.ones(64)}, wrong.folder / "b.safetensors")
    message = wrong.refusal()
    assert "model.norm.weight" in message
    assert "a.safetensors" in message
