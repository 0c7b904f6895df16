"""A stand-in for the real architecture, and a writer of small GGUF files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from octavo.contracts.attention import AttentionSpec
from octavo.contracts.model import WeightSlot
from octavo.records import ModelProfile

Q = gguf.GGMLQuantizationType


class FakeLlama:
    """Llama's slots for one rank: q, k, v are views of one tensor, as in a merged projection."""

    attention_layers: Sequence[AttentionSpec] = ()

    def __init__(
        self, profile: ModelProfile, dtype: torch.dtype = torch.float32, rank: int = 0, ranks: int = 1
    ) -> None:
        self.ignored_weights: list[str] = [r"rotary_emb\.inv_freq$"]
        self._slots: list[WeightSlot] = []
        self._dtype, self._rank, self._ranks = dtype, rank, ranks
        hidden, inner = profile.hidden_size, profile.config["intermediate_size"]
        wide, narrow = profile.num_heads * profile.head_dim, profile.num_kv_heads * profile.head_dim
        self._add("model.embed_tokens.weight", (profile.vocab_size, hidden), None)
        for layer in range(profile.num_layers):
            at = f"model.layers.{layer}"
            parts = {
                f"{at}.self_attn.{part}_proj": rows
                for part, rows in zip("qkv", (wide, narrow, narrow), strict=True)
            }
            self._merged(parts, hidden)
            if profile.config.get("attention_bias"):
                for name, rows in parts.items():
                    self._add(f"{name}.bias", (rows,), 0)
                self._add(f"{at}.self_attn.o_proj.bias", (hidden,), None)
            self._add(f"{at}.self_attn.o_proj.weight", (hidden, wide), 1)
            self._add(f"{at}.mlp.gate_proj.weight", (inner, hidden), 0)
            self._add(f"{at}.mlp.up_proj.weight", (inner, hidden), 0)
            self._add(f"{at}.mlp.down_proj.weight", (hidden, inner), 1)
            self._add(f"{at}.input_layernorm.weight", (hidden,), None)
            self._add(f"{at}.post_attention_layernorm.weight", (hidden,), None)
        self._add("model.norm.weight", (hidden,), None)
        if not profile.tied_embeddings:
            self._add("lm_head.weight", (profile.vocab_size, hidden), 0)

    def _shard(self, shape: tuple[int, ...], axis: int | None) -> tuple[slice, ...]:
        def part(size: int) -> slice:
            return slice(size * self._rank // self._ranks, size * (self._rank + 1) // self._ranks)

        return tuple(part(size) if number == axis else slice(0, size) for number, size in enumerate(shape))

    def _add(self, name: str, shape: tuple[int, ...], axis: int | None, target: torch.Tensor | None = None) -> None:
        shard = self._shard(shape, axis)
        if target is None:
            target = torch.full([part.stop - part.start for part in shard], torch.nan, dtype=self._dtype)
        self._slots.append(WeightSlot(source=name, shape=shape, shard=shard, target=target))

    def _merged(self, parts: dict[str, int], hidden: int) -> None:
        merged = torch.full((sum(parts.values()) // self._ranks, hidden), torch.nan, dtype=self._dtype)
        at = 0
        for name, rows in parts.items():
            self._add(f"{name}.weight", (rows, hidden), 0, merged[at : at + rows // self._ranks])
            at += rows // self._ranks

    def slots(self) -> list[WeightSlot]:
        return self._slots

    def slot(self, name: str) -> WeightSlot:
        return next(slot for slot in self._slots if slot.source == name)

    def weights(self) -> dict[str, torch.Tensor]:
        return {slot.source: slot.target for slot in self._slots}

    def finalize(self) -> None: ...

    def forward(self, *_: Any) -> torch.Tensor:
        raise AssertionError("not called by loaders")

    def logits(self, _: torch.Tensor) -> torch.Tensor:
        raise AssertionError("not called by loaders")


def quiet(_done: int, _total: int, _name: str) -> None:
    """A progress that shows nothing."""


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order that llama.cpp's converter gives the rows of q and k: halves of a head alternate."""
    pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Llama tensor."""
    module, suffix = name.rsplit(".", 1)
    if module in _OUTER:
        return f"{_OUTER[module]}.{suffix}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{suffix}"


def write_gguf(
    folder: Path, path: Path, kind: Q = Q.F32, change: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    """A checkpoint folder as GGUF, matrices quantised to ``kind``; ``change`` may add to the writer."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        module = name.rsplit(".", 2)[-2]
        if module in heads:
            values = interleave(values, heads[module])
        stored = kind if values.ndim == 2 else Q.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_chat_template(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])


@pytest.fixture(scope="session")
def kit() -> Any:
    """The helpers above: test modules can't import one another."""

    class Kit:
        fake = FakeLlama
        types = Q

    Kit.quiet = staticmethod(quiet)  # type: ignore[attr-defined]
    Kit.write_gguf = staticmethod(write_gguf)  # type: ignore[attr-defined]
    Kit.gguf_name = staticmethod(gguf_name)  # type: ignore[attr-defined]
    return Kit
