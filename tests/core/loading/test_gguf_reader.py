"""The GGUF header reader against the ``gguf`` package's writer and reader, and on damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo.errors import CheckpointError
from octavo.loading.gguf_reader import read_gguf
from octavo.loading.profile import read_profile
from octavo.testing.tiny import tiny_llama

LLAMA_CPP = Path(__file__).parents[2] / "data" / "tiny-llama-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("reader") / "tiny", layers=1)


@pytest.fixture
def path(kit: Any, folder: Path, tmp_path: Path) -> Path:
    written: Path = kit.write_gguf(folder, tmp_path / "m.gguf")
    return written


def add_everything(writer: gguf.GGUFWriter) -> None:
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -3)
    writer.add_uint16("test.u16", 65000)
    writer.add_int16("test.i16", -300)
    writer.add_uint32("test.u32", 2**32 - 1)
    writer.add_int32("test.i32", -70000)
    writer.add_uint64("test.u64", 2**60)
    writer.add_int64("test.i64", -(2**60))
    writer.add_float32("test.f32", 0.5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.text", "grüße 🦊")
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.words", ["a", "", "ß"])


def same(ours: Any, theirs: gguf.ReaderField) -> bool:
    return bool(ours == theirs.contents())


@pytest.mark.parametrize("which", ["written", "llama.cpp"])
def test_everything_equals_the_packages_reading(kit: Any, folder: Path, tmp_path: Path, which: str) -> None:
    path = LLAMA_CPP if which == "llama.cpp" else kit.write_gguf(folder, tmp_path / "m.gguf", change=add_everything)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(ours.metadata) == set(fields)
    assert [name for name, field in fields.items() if not same(ours.metadata[name], field)] == []
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert (mine.type, mine.offset) == (tensor.tensor_type, tensor.data_offset)


def test_the_translated_config(kit: Any, folder: Path, path: Path) -> None:
    ours, original = read_profile(str(path)), read_profile(str(folder))
    for key in ("architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert ours.config[key] == original.config[key]
    for key in ("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rope_parameters"):
        assert ours.config[key] == original.config[key]
    assert ours.config["rms_norm_eps"] == pytest.approx(original.config["rms_norm_eps"])
    assert (ours.tied_embeddings, ours.eos_ids, ours.dtype) == (True, (2,), "float32")
    assert (ours.format, ours.name, ours.path) == ("gguf", "m", str(path))


def test_a_folder_with_one_file_is_that_file(path: Path) -> None:
    assert read_profile(str(path.parent)).path == str(path)
    (path.parent / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"m\.gguf, other\.gguf"):
        read_profile(str(path.parent))


def test_a_file_that_ends_before_its_tensors_is_refused_at_once(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100_000])
    assert "truncated" in refusal(path)


def test_rope_factors_and_scaling(kit: Any, folder: Path, tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    path = kit.write_gguf(
        folder, tmp_path / "f.gguf", change=lambda writer: writer.add_tensor("rope_freqs.weight", factors)
    )
    rope = read_profile(str(path)).config["rope_parameters"]
    assert rope == {"rope_type": "gguf_factors", "rope_theta": 10000.0, "factors": factors.tolist()}

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    rope = read_profile(str(kit.write_gguf(folder, tmp_path / "y.gguf", change=yarn))).config["rope_parameters"]
    assert rope == {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }


def test_explicit_head_size_and_end_of_turn(kit: Any, folder: Path, tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(16)
        writer.add_eos_token_id(0)
        writer.add_eot_token_id(7)

    profile = read_profile(str(kit.write_gguf(folder, tmp_path / "m.gguf", change=change)))
    assert profile.head_dim == 16
    assert profile.eos_ids == (0, 7, 2)  # 2 is <|im_end|>, which ends a turn whatever the file says


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_profile(str(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_unknown_architectures_list_the_known(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message = refusal(tmp_path / "m.gguf")
    assert "'gemma3'" in message
    assert "llama, qwen2, qwen3" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda writer: writer.add_expert_count(4), "mixture of experts"),
        (lambda writer: writer.add_uint16("split.count", 3), "split"),
        (lambda writer: writer.add_head_count(0), "attention.head_count"),
        (lambda writer: writer.add_head_count_kv(3), "num_key_value_heads"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
    ],
)
def test_what_the_metadata_may_not_say(kit: Any, folder: Path, tmp_path: Path, change: Any, words: str) -> None:
    assert words in refusal(kit.write_gguf(folder, tmp_path / "m.gguf", change=change))


def test_every_truncation_of_the_header_is_refused(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    end = min(tensor.offset for tensor in read_gguf(path).tensors.values())
    cut = tmp_path / "cut.gguf"
    for size in [0, 1, 3, 4, 7, 8, 15, 20, 23, 24, *range(25, end - 64, 97)]:
        cut.write_bytes(data[:size])
        refusal(cut)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"GGML", "not a GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**50), "truncated"),
        (16, struct.pack("<Q", 2**50), "damaged"),
        (24, struct.pack("<Q", 2**63), "truncated"),
    ],
)
def test_damaged_headers(path: Path, at: int, value: bytes, words: str) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    message = refusal(path)
    assert words in message or "truncated" in message
