"""A Hugging Face ``config.json``, whatever its age, in one spelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.loading.fields import Fields

_DTYPES = ("float32", "float16", "bfloat16")
_DEFAULT_THETA = 10_000.0
# What each kind of rope scaling can't do without.
_ROPE_NEEDS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def normalise_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The configuration of the text model, with these keys always there and checked:

    ``architectures``, ``hidden_size``, ``num_hidden_layers``, ``num_attention_heads``, ``num_key_value_heads``,
    ``head_dim``, ``vocab_size``, ``max_position_embeddings`` and ``rope_parameters`` (with ``rope_type`` and
    ``rope_theta``, both the old ``rope_scaling`` and the new spelling). Other keys stay as they are, those of a
    nested ``text_config`` on top. Raises :class:`octavo.errors.CheckpointError` naming file and key.
    """
    text = Fields(raw, where).section("text_config") or {}
    config = {**{key: value for key, value in raw.items() if key != "text_config"}, **text}
    config["architectures"] = _architectures(raw if raw.get("architectures") else config, where)
    fields = Fields(config, where)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    config["num_hidden_layers"] = fields.integer("num_hidden_layers")
    config["vocab_size"] = fields.integer("vocab_size")
    config["max_position_embeddings"] = fields.integer("max_position_embeddings")
    config["num_key_value_heads"] = _kv_heads(fields, heads)
    config["head_dim"] = _head_dim(fields, hidden, heads)
    config["rope_parameters"] = _rope_parameters(fields)
    return config


def config_dtype(config: Mapping[str, Any], where: str) -> str | None:
    """``dtype`` (new spelling) or ``torch_dtype`` (old), such as ``"bfloat16"``; ``None`` where neither is said."""
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    value = config.get(key)
    if value is None or value == "auto":
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name not in _DTYPES:
        raise Fields(config, where).error(key, f"must be one of {', '.join(_DTYPES)}, not {value!r}")
    return str(name)


def eos_ids(config: Mapping[str, Any], where: str, vocab_size: int) -> tuple[int, ...]:
    """``eos_token_id``, an id or a list, of a configuration."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise Fields(config, where).error(
                "eos_token_id", f"must be an id from 0 to {vocab_size - 1} or a list of such ids, not {value!r}"
            )
    return tuple(ids)


def _architectures(config: Mapping[str, Any], where: str) -> list[str]:
    value = config.get("architectures")
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise Fields(config, where).error(
            "architectures", f'must be a list of one name such as ["LlamaForCausalLM"], not {value!r}'
        )
    return list(value)


def _kv_heads(fields: Fields, heads: int) -> int:
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error(
            "num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads ({heads})"
        )
    return kv_heads


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") and hidden % heads:
        raise fields.error(
            "hidden_size", f"is {hidden}, which num_attention_heads ({heads}) does not divide; give head_dim"
        )
    head_dim = fields.integer("head_dim", hidden // heads or None)
    if head_dim % 2:
        raise fields.error("head_dim", f"is {head_dim}; rotary embeddings need an even one")
    return head_dim


def _rope_parameters(fields: Fields) -> dict[str, Any]:
    given = fields.section("rope_parameters")
    key = "rope_parameters" if given is not None else "rope_scaling"
    rope = dict(given if given is not None else fields.section("rope_scaling") or {})
    if rope and all(isinstance(value, dict) for value in rope.values()):
        return {
            kind: _one_rope(Fields(value, f"{fields.where}: {key}.{kind}"), fields) for kind, value in rope.items()
        }
    return _one_rope(Fields(rope, f"{fields.where}: {key}"), fields)


def _one_rope(rope: Fields, fields: Fields) -> dict[str, Any]:
    values = {key: value for key, value in rope.values.items() if key != "type"}
    kind = values.get("rope_type") or rope.values.get("type") or "default"
    if not isinstance(kind, str):
        raise rope.error("rope_type", f'must be a name such as "default" or "llama3", not {kind!r}')
    theta = rope.number("rope_theta", fields.number("rope_theta", _DEFAULT_THETA))
    for key in _ROPE_NEEDS.get(kind, ()):
        if key == "original_max_position_embeddings" and not rope.has(key) and fields.has(key):
            values[key] = fields.integer(key)
        else:
            rope.number(key)
    return {**values, "rope_type": kind, "rope_theta": theta}
