"""The layers of an EAGLE head, built like any architecture, under the names of either checkpoint spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.contracts.model import WeightSlot
from octavo.errors import CheckpointError
from octavo.layers import Embedding, Linear, LMHead, Part, Parts, RMSNorm, Rope, whole_slot
from octavo.records import Context, ModelProfile

_LAYERS = ("midlayer.", "layers.0.", "model.layers.0.", "model.midlayer.")


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a checkpoint's tensors say: their prefixes, and which optional ones are there.

    ``states``: hidden states that ``fc`` joins: 3 for EAGLE-3, else 1 beside the token's embedding.
    """

    layer: str
    fc: str
    outer: str  # before norm, lm_head and embed_tokens
    states: int
    fc_bias: bool
    own_embedding: bool
    own_head: int  # its vocabulary; 0 where the target's is used
    d2t: str

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], folder: str) -> Spelling:
        """Raises :class:`CheckpointError` where these are no tensors of an EAGLE head."""
        layer = next((at for at in _LAYERS if f"{at}self_attn.q_proj.weight" in shapes), None)
        fc = next((name for name in ("fc.weight", "model.fc.weight") if name in shapes), None)
        if layer is None or fc is None:
            raise CheckpointError(
                f"{folder}: is no EAGLE head: it needs fc.weight and a layer under {', '.join(_LAYERS[:2])}."
            )
        hidden = shapes[f"{layer}self_attn.o_proj.weight"][0]
        third = shapes[f"{layer}self_attn.q_proj.weight"][1] == 2 * hidden
        head = next((name for name in ("lm_head.weight", "model.lm_head.weight") if name in shapes), None)
        outer = "model." if any(name.startswith("model.") for name in shapes if "norm" in name) else ""
        return Spelling(
            layer=layer,
            fc=fc.removesuffix(".weight"),
            outer=outer,
            states=3 if third else 1,
            fc_bias=fc.replace("weight", "bias") in shapes,
            own_embedding=third and f"{outer}embed_tokens.weight" in shapes,
            own_head=shapes[head][0] if third and head else 0,
            d2t=next((name for name in ("d2t", "model.d2t") if name in shapes), "") if third else "",
        )


class EagleHead:
    """The head's parameters. What it lacks, the target has: embedding and output layer."""

    def __init__(self, ctx: Context, parts: Parts, spelling: Spelling, target: ModelProfile) -> None:
        profile, self.spelling = ctx.model, spelling
        config, hidden, at = profile.config, profile.hidden_size, spelling.layer
        eps, third = float(config.get("rms_norm_eps", 1e-6)), spelling.states == 3
        size, heads, kv_heads = profile.head_dim, profile.num_heads, profile.num_kv_heads
        bias = bool(config.get("attention_bias", False))
        joined = spelling.states * target.hidden_size if third else 2 * hidden
        self.fc = Linear(parts, [Part(spelling.fc, hidden)], joined, bias=spelling.fc_bias, division="none")
        named = [("q", heads), ("k", kv_heads), ("v", kv_heads)]
        self.qkv = Linear(
            parts,
            [Part(f"{at}self_attn.{name}_proj", count * size) for name, count in named],
            2 * hidden if third else hidden,
            bias=bias,
            division="none",
        )
        self.output = Linear(
            parts, [Part(f"{at}self_attn.o_proj", hidden)], heads * size, bias=bias, division="none"
        )
        inner = int(config["intermediate_size"])
        gates = [Part(f"{at}mlp.{name}_proj", inner) for name in ("gate", "up")]
        self.gate_up = Linear(parts, gates, hidden, bias=False, division="none")
        self.down = Linear(parts, [Part(f"{at}mlp.down_proj", hidden)], inner, bias=False, division="none")
        self.post_norm = RMSNorm(parts, f"{at}post_attention_layernorm", hidden, eps)
        self._norms = [self.post_norm]
        if third:
            self.input_norm = RMSNorm(parts, f"{at}input_layernorm", hidden, eps)
            self.hidden_norm = RMSNorm(parts, f"{at}hidden_norm", hidden, eps)
            self.norm = RMSNorm(parts, f"{spelling.outer}norm", hidden, eps)
            self._norms += [self.input_norm, self.hidden_norm, self.norm]
        self.norm_before_residual = bool(config.get("norm_before_residual", False))
        self.embedding, self.head, self.d2t = self._optional(parts, spelling, profile)
        self.rope = Rope(config, size, ctx.max_length, parts.device)
        self.dtype, self.hidden = parts.dtype, hidden
        self._attend, self._turn, self._act = parts.attention.forward, parts.ops.rope, parts.ops.silu_mul
        self.spec = AttentionSpec(layer=0, num_heads=heads, num_kv_heads=kv_heads, head_dim=size, scale=size**-0.5)
        self.attention_layers: Sequence[AttentionSpec] = [self.spec]
        self.ignored_weights: Sequence[str] = [r"(model\.)?t2d", r".*rotary_emb\.inv_freq"]
        if not third:  # the target's are used, and layer 0 has no first norm
            self.ignored_weights += [r".*embed_tokens\.weight", r".*lm_head\.weight", r".*input_layernorm\.weight"]

    def layer(self, embedded: Tensor, state: Tensor, batch: StepBatch, plan: Any, cache: Tensor) -> Tensor:
        """The next state of each token, from the token behind it and its own state; [tokens, hidden] each."""
        if self.spelling.states == 3:
            normed = self.hidden_norm(state)
            x = torch.cat([self.input_norm(embedded), normed], dim=1)
            residual = (normed if self.norm_before_residual else state).clone()
        else:
            x = self.fc(torch.cat([embedded, state], dim=1))
            residual = x
        heads = self.qkv(x).view(len(x), -1, self.spec.head_dim)
        rotated = self.spec.num_heads + self.spec.num_kv_heads
        turned = self._turn(heads[:, :rotated], *self.rope(batch.positions))
        query, key = turned[:, : self.spec.num_heads], turned[:, self.spec.num_heads :]
        attended = self.output(self._attend(plan, self.spec, query, key, heads[:, rotated:], cache))
        inner = self.post_norm(attended, residual)  # adds to the residual
        return self.down(self._act(self.gate_up(inner))) + residual

    def slots(self) -> list[WeightSlot]:
        slots = [slot for linear in self._linears() for slot in linear.slots()]
        slots += [slot for norm in self._norms for slot in norm.slots()]
        for part in (self.embedding, self.head):
            slots += part.slots() if part is not None else []
        return slots if self.d2t is None else [*slots, whole_slot(self.spelling.d2t, self.d2t)]

    def finalize(self) -> None:
        for linear in self._linears():
            linear.finalize()
        if self.head is not None:
            self.head.finalize()

    def _linears(self) -> tuple[Linear, ...]:
        return self.fc, self.qkv, self.output, self.gate_up, self.down

    def _optional(
        self, parts: Parts, spelling: Spelling, profile: ModelProfile
    ) -> tuple[Embedding | None, LMHead | None, Tensor | None]:
        hidden, outer = profile.hidden_size, spelling.outer
        embedding = head = d2t = None
        if spelling.own_embedding:
            embedding = Embedding(parts, f"{outer}embed_tokens", profile.vocab_size, hidden)
        if spelling.own_head:
            head = LMHead(parts, "lm_head", spelling.own_head, hidden, None)
        if spelling.d2t:
            d2t = torch.zeros(spelling.own_head, dtype=torch.int64, device=parts.device)
        return embedding, head, d2t
