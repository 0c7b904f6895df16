"""GGUF metadata translated into the Hugging Face configuration that it came from."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from octavo.errors import CheckpointError, nearest
from octavo.loading.fields import Fields
from octavo.loading.gguf_reader import GgufFile

ROPE_FACTORS = "rope_freqs.weight"
# Tokens that end an answer in chat models whose file names another end-of-text token.
_TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>"})
_CONTROL = 3
_FLOATS = {0: "float32", 1: "float16", 30: "bfloat16"}


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """How llama.cpp's name for an architecture maps. ``permuted``: rows of q and k are stored interleaved."""

    hf: str
    model_type: str
    permuted: bool = False


GGUF_ARCHITECTURES = {
    "llama": GgufArchitecture("LlamaForCausalLM", "llama", permuted=True),
    "qwen2": GgufArchitecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": GgufArchitecture("Qwen3ForCausalLM", "qwen3"),
}


def gguf_architecture(file: GgufFile) -> GgufArchitecture:
    """The entry for ``general.architecture``; an unknown one is a :class:`CheckpointError` listing the known."""
    name = file.metadata.get("general.architecture")
    if name not in GGUF_ARCHITECTURES:
        known = ", ".join(GGUF_ARCHITECTURES)
        raise CheckpointError(
            f"{file.path}: general.architecture is {name!r}, which Octavo can't translate; known: {known}."
            f"{nearest(str(name), GGUF_ARCHITECTURES)} A safetensors copy of the model may work."
        )
    return GGUF_ARCHITECTURES[str(name)]


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """The equivalent of ``config.json``, with ``dtype`` and ``eos_token_id``; not yet normalised or checked."""
    architecture = gguf_architecture(file)
    prefix = f"{file.metadata['general.architecture']}."
    meta = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    fields = Fields(meta, f"{file.path}: {prefix[:-1]} metadata")
    if file.metadata.get("split.count", 0) > 1:
        raise CheckpointError(
            f"{file.path}: one part of a split model; join the parts with llama-gguf-split --merge."
        )
    if meta.get("expert_count"):
        raise CheckpointError(f"{file.path}: a mixture of experts; GGUF files of such models are not supported.")
    heads = fields.integer("attention.head_count")
    config = {
        "architectures": [architecture.hf],
        "model_type": architecture.model_type,
        "hidden_size": fields.integer("embedding_length"),
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": _rows(file, "token_embd.weight"),
        "head_dim": meta.get("attention.key_length") or _rows(file, "blk.0.attn_q.weight") // heads,
        "rope_parameters": _rope(file, fields),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": _dtype(file),
        "eos_token_id": _eos_ids(file),
    }
    for key, source in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        config[key] = file.metadata.get(f"tokenizer.ggml.{source}")
    return config


def _rows(file: GgufFile, name: str) -> int:
    tensor = file.tensors.get(name)
    if tensor is None or not tensor.shape:
        raise CheckpointError(f"{file.path}: tensor {name} is missing.")
    return tensor.shape[0]


def _rope(file: GgufFile, fields: Fields) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": fields.number("rope.freq_base", 10_000.0)}
    kind = fields.values.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": fields.number("rope.scaling.factor")}
        if fields.has("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = fields.integer("rope.scaling.original_context_length")
    elif kind != "none":
        raise fields.error("rope.scaling.type", f"is {kind!r}; known: none, linear, yarn")
    if ROPE_FACTORS in file.tensors:
        rope |= {"rope_type": "gguf_factors", "factors": _rope_factors(file)}
    return rope


def _rope_factors(file: GgufFile) -> list[float]:
    """Llama 3's long-context scaling, as converters store it: what each rotary frequency is divided by."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.type != 0 or len(tensor.shape) != 1:
        raise CheckpointError(f"{file.path}: tensor {ROPE_FACTORS} must be one row of float32.")
    (count,) = tensor.shape
    with file.path.open("rb") as data:
        data.seek(tensor.offset)
        raw = data.read(4 * count)
    if len(raw) < 4 * count:
        raise CheckpointError(f"{file.path}: truncated inside tensor {ROPE_FACTORS}. Download the file again.")
    return list(struct.unpack(f"<{count}f", raw))


def _dtype(file: GgufFile) -> str:
    """The type of the embedding; quantised weights become bfloat16, whose range holds whatever they came from."""
    return _FLOATS.get(file.tensors["token_embd.weight"].type, "bfloat16")


def _eos_ids(file: GgufFile) -> list[int]:
    """The end-of-text and end-of-turn ids that the file names, and its chat tokens that mean the same."""
    named = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ids = [token for token in named if isinstance(token, int)]
    tokens = file.metadata.get("tokenizer.ggml.tokens") or ()
    kinds = file.metadata.get("tokenizer.ggml.token_type") or ()
    control = (token for token, kind in enumerate(kinds) if kind == _CONTROL)
    ids += [token for token in control if token < len(tokens) and tokens[token] in _TURN_ENDS]
    return list(dict.fromkeys(ids))
