"""A Llama that says what SmolLM2 says and costs what an 8B model costs: weights that change nothing are added.

Real values stand in the first columns of a wider residual stream whose other columns stay zero: what writes to
them is zero, and norms, which average over more columns, are scaled to match. Added heads and MLP columns read
real values through random weights and are multiplied by zero on their way out; added layers likewise. A head of
64 becomes one of 128 whose rotary pairs stand where their frequencies are, with queries times sqrt(2). In exact
arithmetic the function is the same; random fillers keep the device as busy as real weights would.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes of the wide model; the default is Llama 3 8B's, but for the vocabulary."""

    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128


class Widened:
    """Tensors of the wide model by name, made from the narrow one's when they are asked for."""

    def __init__(self, folder: Path, shape: Shape, device: str) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.narrow = load_file(folder / "model.safetensors", device=device)
        self.shape, self.device = shape, device
        self.generator = torch.Generator(device=device).manual_seed(0)
        self.part = self.config["hidden_size"] / shape.hidden  # of the columns that are real

    def wide_config(self) -> dict[str, Any]:
        """config.json of the wide model."""
        shape = self.shape
        return self.config | {
            "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
            "rms_norm_eps": self.config["rms_norm_eps"] * self.part, "dtype": "bfloat16",
        }  # fmt: skip

    def tensor(self, name: str) -> Tensor:
        """One tensor of the wide model, float32."""
        kind = name.split(".")[-2]
        if name not in self.narrow:  # an added layer
            return self._filler(name, kind)
        weight, hidden = self.narrow[name].float(), self.shape.hidden
        if kind.endswith("norm") or kind.endswith("layernorm"):
            return self._zeros(hidden, first=weight * self.part**0.5)
        if kind in ("q_proj", "k_proj", "v_proj"):
            return self._heads(weight, kind)
        if kind == "o_proj":
            return self._zeros(hidden, self.shape.heads * self.shape.head_dim, at=self._columns(weight))
        if kind in ("gate_proj", "up_proj"):
            wide = self._random(self.shape.inner, hidden)
            wide[: weight.shape[0]] = 0
            wide[: weight.shape[0], : weight.shape[1]] = weight
            return wide
        if kind == "down_proj":
            return self._zeros(hidden, self.shape.inner, at=(slice(0, weight.shape[1]), weight))
        if kind == "fc":
            size = weight.shape[0]
            wide = self._zeros(hidden, 2 * hidden, at=(slice(0, size), weight[:, :size]))
            wide[:size, hidden : hidden + size] = weight[:, size:]
            return wide
        return self._zeros(len(weight), hidden, at=(slice(0, weight.shape[1]), weight))  # the embedding

    def _filler(self, name: str, kind: str) -> Tensor:
        shape = self.shape
        rows = {"q_proj": shape.heads * shape.head_dim, "gate_proj": shape.inner, "up_proj": shape.inner}
        if kind in ("o_proj", "down_proj"):
            return self._zeros(shape.hidden, shape.inner if kind == "down_proj" else shape.heads * shape.head_dim)
        if kind in ("k_proj", "v_proj") or kind in rows:
            return self._random(rows.get(kind, shape.kv_heads * shape.head_dim), shape.hidden)
        return torch.ones(shape.hidden, device=self.device)

    def _heads(self, weight: Tensor, kind: str) -> Tensor:
        shape, old = self.shape, self.config["head_dim"]
        count = shape.heads if kind == "q_proj" else shape.kv_heads
        wide = self._random(count * shape.head_dim, shape.hidden).view(count, shape.head_dim, shape.hidden)
        weight = weight.view(-1, old, weight.shape[1]) * ((shape.head_dim / old) ** 0.5 if kind == "q_proj" else 1)
        places = self._places(kind != "v_proj")
        for head, values in enumerate(weight):
            target = wide[self._head(head) if kind == "q_proj" else head]
            target.zero_()
            target[places, : weight.shape[2]] = values
        return wide.view(-1, shape.hidden)

    def _columns(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Where the columns of ``o_proj`` go, and the weight."""
        places = self._places(False)
        heads = range(self.config["num_attention_heads"])
        return torch.cat([places + self._head(head) * self.shape.head_dim for head in heads]), weight

    def _head(self, head: int) -> int:
        group = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        return head // group * (self.shape.heads // self.shape.kv_heads) + head % group

    def _places(self, rotary: bool) -> Tensor:
        """Where the values of a head stand in a larger one."""
        old, new = self.config["head_dim"], self.shape.head_dim
        if not rotary:
            return torch.arange(old, device=self.device)
        half = torch.arange(old // 2, device=self.device) * (new // old)
        return torch.cat([half, half + new // 2])

    def _zeros(self, *sizes: int, first: Tensor | None = None, at: tuple[Any, Tensor] | None = None) -> Tensor:
        wide = torch.zeros(sizes, device=self.device)
        if first is not None:
            wide[: len(first)] = first
        if at is not None:
            rows = torch.zeros(at[1].shape[0], sizes[1], device=self.device)
            rows[:, at[0]] = at[1]
            wide[: len(rows)] = rows
        return wide

    def _random(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, generator=self.generator, device=self.device) * 0.02


class WidenedLoader:
    """A model loader of Octavo: fills the wide model without a file."""

    def __init__(self, widened: Widened) -> None:
        self.widened = widened

    def load(self, model: Any, profile: Any, progress: Any) -> None:
        for slot in model.slots():
            slot.target.copy_(self.widened.tensor(slot.source)[slot.shard])
            slot.loaded = True


def widen_head(head: Path, output: Path, shape: Shape, device: str) -> Path:
    """Write the head of the narrow model as one of the wide one."""
    widened = Widened(head, shape, device)
    tensors = {name: widened.tensor(name).to(torch.bfloat16).cpu().contiguous() for name in widened.narrow}
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    (output / "config.json").write_text(json.dumps(widened.wide_config() | {"num_hidden_layers": 1}))
    return output
