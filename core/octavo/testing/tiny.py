"""Tiny random Llama checkpoints, as Hugging Face writes them: for tests without downloads.

folder = tiny_llama(tmp_path / "model", layers=3, kv_heads=1)
model = transformers.LlamaForCausalLM.from_pretrained(folder)     # the oracle
engine = octavo.LLM(str(folder))
"""

from __future__ import annotations

import itertools
import json
import math
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from octavo.loading.tokenizer_files import byte_alphabet

if TYPE_CHECKING:
    import torch

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 (begin of text) and 2 (end of text) of every tiny tokenizer; the 256 bytes follow."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, in the form that every tiny checkpoint carries."""

_COMMON = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri"
)


def tiny_llama(
    folder: str | Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 128,
    vocab: int = 320,
    tied: bool = True,
    bias: bool = False,
    rope: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    max_length: int = 512,
    shards: int = 1,
) -> Path:
    """Write config.json, safetensors and a byte-level tokenizer with a ChatML template; returns ``folder``.

    Weights are random but large enough that greedy answers wander instead of repeating one token. ``vocab`` is
    the model's and the tokenizer's size, at least 259. ``rope`` holds ``rope_parameters`` (``rope_type``,
    ``rope_theta`` …); ``bias`` gives every linear layer one; ``shards`` splits the weights over that many files
    with an index. Transformers loads the folder, model and tokenizer alike.
    """
    import torch

    if vocab < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab must be at least {256 + len(SPECIAL_TOKENS)}, not {vocab}")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": max_length,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, **(rope or {})},
        "attention_bias": bias,
        "mlp_bias": bias,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": dtype,
    }
    _write_json(path / "config.json", config)
    weights = tiny_llama_weights(config, seed)
    _write_weights(path, {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}, shards)
    tiny_tokenizer(path, vocab=vocab)
    return path


def tiny_llama_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights for a Llama ``config``, by their names in a checkpoint.

    The gains make what the layers add outweigh the token's own embedding, which would otherwise, tied to the
    output, repeat itself for ever.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    wide = config["num_attention_heads"] * head_dim
    narrow = config["num_key_value_heads"] * head_dim
    inner = config["intermediate_size"]
    weights: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int, gain: float, bias: bool) -> None:
        weights[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * gain / math.sqrt(columns)
        if bias:
            weights[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.2

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = 1.0 + 0.1 * torch.randn(hidden, generator=generator)

    weights["model.embed_tokens.weight"] = torch.randn(config["vocab_size"], hidden, generator=generator) * 0.5
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norm(f"{at}.input_layernorm")
        norm(f"{at}.post_attention_layernorm")
        for part, rows, gain in (("q", wide, 2.5), ("k", narrow, 2.5), ("v", narrow, 2.0)):
            linear(f"{at}.self_attn.{part}_proj", rows, hidden, gain, config["attention_bias"])
        linear(f"{at}.self_attn.o_proj", hidden, wide, 8.0, config["attention_bias"])
        for part in ("gate", "up"):
            linear(f"{at}.mlp.{part}_proj", inner, hidden, 2.0, config["mlp_bias"])
        linear(f"{at}.mlp.down_proj", hidden, inner, 3.0, config["mlp_bias"])
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        linear("lm_head", config["vocab_size"], hidden, 4.0, False)
    return weights


def tiny_tokenizer(folder: str | Path, *, vocab: int = 320) -> Path:
    """Write a byte-level BPE tokenizer of exactly ``vocab`` tokens (as far as three-letter merges reach:
    240,000)."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    letters = {byte: char for char, byte in byte_alphabet().items()}
    tokens = [*SPECIAL_TOKENS, *(letters[byte] for byte in range(256))]
    merges = list(itertools.islice(_merges(letters[ord(" ")]), vocab - len(tokens)))
    tokens += [left + right for left, right in merges]
    added = [
        {"id": number, "content": text, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for number, text in enumerate(SPECIAL_TOKENS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    _write_json(
        path / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE",
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [list(pair) for pair in merges],
            },
        },
    )
    end, start, stop = SPECIAL_TOKENS
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "eos_token": stop,
            "unk_token": end,
            "pad_token": end,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return path


def _merges(space: str) -> Any:
    """Pairs of characters: frequent English ones, then words' beginnings, then all letters; then threes of
    these."""
    common = [(pair[0], pair[1]) for pair in _COMMON.split()]
    starts = [(space, letter) for letter in string.ascii_lowercase]
    letters = string.ascii_letters + string.digits
    pairs, threes = itertools.product(letters, letters), itertools.product(letters, letters, letters)
    longer = ((first + second, third) for first, second, third in threes)
    return iter(dict.fromkeys(itertools.chain(common, starts, pairs, longer)))


def _write_weights(folder: Path, weights: Mapping[str, torch.Tensor], shards: int) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata=metadata)
        return
    names = list(weights)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: weights[name] for name in part}, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(weight.nbytes for weight in weights.values())
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
