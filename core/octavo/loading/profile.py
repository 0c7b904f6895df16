"""What a model is, read from its folder or file before any weight: quick, and without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.loading.bundled import PREFIX, bundled_path
from octavo.loading.digest import checkpoint_digest
from octavo.loading.fields import Fields, read_json_object
from octavo.loading.gguf_config import gguf_config
from octavo.loading.gguf_reader import read_gguf
from octavo.loading.hf_config import config_dtype, eos_ids, normalise_config
from octavo.loading.safetensors_files import HeaderEntry, read_entries, weight_files
from octavo.records import ModelProfile

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checkpoint:
    """What a folder or file holds, before it is checked."""

    path: Path
    format: str
    where: str  # what messages about the configuration begin with
    raw: Mapping[str, Any]
    files: Sequence[Path] = ()
    entries: Mapping[str, HeaderEntry] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] | None = None


def read_profile(path: str, *, name: str | None = None) -> ModelProfile:
    """Read what is known of a model: ``bundled:NAME``, a checkpoint folder, or a .gguf file.

    ``name`` is the name shown to clients; by default the last part of the path. Raises
    :class:`CheckpointError` naming the file and key that are missing, damaged or contradictory.
    """
    location = locate(path)
    checkpoint = _gguf(location) if location.is_file() else _folder(location)
    default = (
        path.removeprefix(PREFIX) if path.startswith(PREFIX) else location.resolve().name.removesuffix(".gguf")
    )
    return _profile(checkpoint, name or default)


def locate(path: str) -> Path:
    """The folder or .gguf file that ``path`` means; a folder whose only weights are one .gguf is that file."""
    if path.startswith(PREFIX):
        return bundled_path(path)
    location = Path(path).expanduser()
    if location.is_file():
        if location.suffix != ".gguf":
            raise CheckpointError(f"{path}: a model is a .gguf file or a folder with config.json, not this file.")
        return location
    if not location.is_dir():
        raise CheckpointError(
            f"{path}: no such folder or file. A model is a folder with config.json, a .gguf file, or {PREFIX}NAME; "
            "Octavo does not download: fetch a hub model first, for example with `hf download`."
        )
    return _single_gguf(location) or location


def _single_gguf(folder: Path) -> Path | None:
    found = sorted(folder.glob("*.gguf"))
    if not found or weight_files(folder):
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise CheckpointError(f"{folder}: holds {len(found)} .gguf files ({names}); name one of them as the path.")
    return found[0]


def _gguf(path: Path) -> _Checkpoint:
    file = read_gguf(path)
    return _Checkpoint(path=path, format="gguf", where=str(path), raw=gguf_config(file), files=(path,))


def _folder(folder: Path) -> _Checkpoint:
    where = folder / "config.json"
    if not where.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "It holds a LoRA adapter; give the base model here." if adapter else "Is this a checkpoint folder?"
        raise CheckpointError(f"{folder}: has neither config.json nor a .gguf file. {hint}")
    raw = read_json_object(where)
    files = weight_files(folder)
    if not files:
        _refuse_pickle(folder)
    generation = folder / "generation_config.json"
    return _Checkpoint(
        path=folder,
        format="safetensors" if files else "config",
        where=str(where),
        raw=raw,
        files=files,
        entries=read_entries(folder),
        generation=read_json_object(generation) if generation.is_file() else {},
        quantization=_quantization(folder, raw, str(where)),
    )


def _refuse_pickle(folder: Path) -> None:
    pickled = [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
    if pickled:
        raise CheckpointError(
            f"{folder}: its weights are pickle files ({', '.join(pickled[:3])}), which can run code when read and "
            "are refused. Convert them: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) "
            "of transformers writes safetensors."
        )


def _quantization(folder: Path, raw: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """``quantization_config`` of config.json, or the file that GPTQ, AWQ or ModelOpt wrote beside it."""
    text = Fields(raw, where).section("text_config") or {}
    for key in ("quantization_config", "compression_config"):
        found = Fields(raw, where).section(key) or Fields(text, where).section(key)
        if found:
            return found
    for file, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (folder / file).is_file():
            return {"quant_method": method, **read_json_object(folder / file)}
    modelopt = folder / "hf_quant_config.json"
    if modelopt.is_file():
        inner = Fields(read_json_object(modelopt), str(modelopt)).section("quantization") or {}
        return {"quant_method": "modelopt", **inner}
    return None


def _profile(found: _Checkpoint, name: str) -> ModelProfile:
    config = normalise_config(found.raw, found.where)
    vocab_size = config["vocab_size"]
    ends = eos_ids(config, found.where, vocab_size)
    if found.generation:
        ends += eos_ids(found.generation, str(found.path / "generation_config.json"), vocab_size)
    tied = Fields(config, found.where).boolean("tie_word_embeddings", _looks_tied(found.entries))
    return ModelProfile(
        path=str(found.path),
        name=name,
        format=found.format,
        architecture=config["architectures"][0],
        config=config,
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab_size=vocab_size,
        max_length=config["max_position_embeddings"],
        dtype=config_dtype(config, found.where) or _stored_dtype(found.entries),
        tied_embeddings=tied,
        eos_ids=tuple(dict.fromkeys(ends)),
        quantization=found.quantization,
        generation=found.generation,
        digest=checkpoint_digest(config, found.files),
    )


def like(model: ModelProfile, path: str) -> ModelProfile:
    """Facts of a folder of safetensors that no config.json describes: those of ``model``."""
    return replace(model, path=path, format="safetensors", quantization=None)


def _looks_tied(entries: Mapping[str, HeaderEntry]) -> bool:
    """Where config.json does not say: tied if there are weights and none for the output layer."""
    return bool(entries) and not any(entry.endswith("lm_head.weight") for entry in entries)


def _stored_dtype(entries: Mapping[str, HeaderEntry]) -> str:
    """The floating type that most bytes are stored in."""
    sizes = Counter[str]()
    for entry in entries.values():
        if entry.dtype in _FLOATS:
            sizes[_FLOATS[entry.dtype]] += entry.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"
