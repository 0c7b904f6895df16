"""The Llama architecture (arXiv 2302.13971, 2407.21783): the decoder most others are variations of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.contracts.linear import kv_scales
from octavo.contracts.model import WeightSlot
from octavo.errors import CheckpointError
from octavo.model.layers import Embedding, LMHead, RMSNorm
from octavo.model.linear import Linear, Part
from octavo.model.parts import Parts
from octavo.model.rope import Rope
from octavo.records import Context, ModelProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderStyle:
    """Where relatives of Llama differ from it.

    ``qk_norm``: queries and keys are normed head by head, before they are rotated (Qwen 3). ``windowed``: a
    ``sliding_window`` in the configuration holds (Qwen states one that it does not use).
    """

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windowed: bool = True


class LlamaAttention:
    """Grouped-query attention (arXiv 2305.13245) with one merged projection for query, key and value."""

    def __init__(self, parts: Parts, profile: ModelProfile, layer: int, style: DecoderStyle) -> None:
        config, ranks = profile.config, parts.ranks
        name, size = f"model.layers.{layer}.self_attn", profile.head_dim
        copies = max(1, ranks.size // profile.num_kv_heads)
        self._heads = ranks.divide(profile.num_heads, "num_attention_heads")
        self._kv_heads = max(1, profile.num_kv_heads // ranks.size)
        kv_part = profile.num_kv_heads * size
        self.qkv = Linear(
            parts,
            [
                Part(f"{name}.q_proj", profile.num_heads * size),
                Part(f"{name}.k_proj", kv_part, copies),
                Part(f"{name}.v_proj", kv_part, copies),
            ],
            profile.hidden_size,
            bias=style.qkv_bias,
        )
        self.output = Linear(
            parts,
            [Part(f"{name}.o_proj", profile.hidden_size)],
            profile.num_heads * size,
            bias=style.output_bias,
            division="row",
        )
        key_scale, value_scale = kv_scales(parts.scheme, name)
        self.spec = AttentionSpec(
            layer=layer,
            num_heads=self._heads,
            num_kv_heads=self._kv_heads,
            head_dim=size,
            scale=size**-0.5,
            sliding_window=(config.get("sliding_window") or None) if style.windowed else None,
            key_scale=key_scale,
            value_scale=value_scale,
        )
        eps = float(config.get("rms_norm_eps", 1e-6))
        self.query_norm = RMSNorm(parts, f"{name}.q_norm", size, eps) if style.qk_norm else None
        self.key_norm = RMSNorm(parts, f"{name}.k_norm", size, eps) if style.qk_norm else None
        self._rope, self._norm_rope = parts.ops.rope, parts.ops.qk_norm_rope
        self._attend = parts.attention.forward

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], plan: Any, cache: Tensor) -> Tensor:
        heads = self.qkv(x).view(x.shape[0], -1, self.spec.head_dim)
        rotated = self._heads + self._kv_heads
        if self.query_norm is None or self.key_norm is None:
            turned = self._rope(heads[:, :rotated], *rope)
        else:
            weights = self.query_norm.weight, self.key_norm.weight
            turned = self._norm_rope(heads[:, :rotated], *weights, self._heads, self.query_norm.eps, *rope)
        query, key = turned[:, : self._heads], turned[:, self._heads :]
        out = self._attend(plan, self.spec, query, key, heads[:, rotated:], cache)
        return self.output(out)

    def slots(self) -> list[WeightSlot]:
        norms = [norm for norm in (self.query_norm, self.key_norm) if norm is not None]
        slots = [slot for norm in norms for slot in norm.slots()]
        return [*self.qkv.slots(), *self.output.slots(), *slots]


class LlamaMLP:
    """SwiGLU with gate and up merged."""

    def __init__(self, parts: Parts, profile: ModelProfile, layer: int, style: DecoderStyle) -> None:
        name, hidden = f"model.layers.{layer}.mlp", profile.hidden_size
        inner, bias = int(profile.config["intermediate_size"]), style.mlp_bias
        self.gate_up = Linear(
            parts, [Part(f"{name}.gate_proj", inner), Part(f"{name}.up_proj", inner)], hidden, bias=bias
        )
        self.down = Linear(parts, [Part(f"{name}.down_proj", hidden)], inner, bias=bias, division="row")
        self._act = parts.ops.silu_mul

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self._act(self.gate_up(x)))


class LlamaLayer:
    """Attention and MLP, each behind a norm, around one residual stream."""

    def __init__(self, parts: Parts, profile: ModelProfile, layer: int, style: DecoderStyle) -> None:
        eps = float(profile.config.get("rms_norm_eps", 1e-6))
        name, hidden = f"model.layers.{layer}", profile.hidden_size
        self.input_norm = RMSNorm(parts, f"{name}.input_layernorm", hidden, eps)
        self.attention = LlamaAttention(parts, profile, layer, style)
        self.post_norm = RMSNorm(parts, f"{name}.post_attention_layernorm", hidden, eps)
        self.mlp = LlamaMLP(parts, profile, layer, style)

    def __call__(
        self, x: Tensor, residual: Tensor | None, rope: tuple[Tensor, Tensor], plan: Any, cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``x`` is what the last layer adds to ``residual``; the first layer has none yet."""
        normed = self.input_norm(x, residual)
        residual = x if residual is None else residual
        attended = self.attention(normed, rope, plan, cache)
        return self.mlp(self.post_norm(attended, residual)), residual


class LlamaForCausalLM:
    """A :class:`octavo.contracts.model.CausalLM`."""

    ignored_weights: Sequence[str] = (r".*\.rotary_emb\.inv_freq", r".*\.masked_bias", r".*\.attn\.bias")

    def __init__(self, parts: Parts, profile: ModelProfile, max_length: int, style: DecoderStyle) -> None:
        _check(profile.config)
        eps = float(profile.config.get("rms_norm_eps", 1e-6))
        self._embed = Embedding(parts, "model.embed_tokens", profile.vocab_size, profile.hidden_size)
        self._layers = [LlamaLayer(parts, profile, layer, style) for layer in range(profile.num_layers)]
        self._norm = RMSNorm(parts, "model.norm", profile.hidden_size, eps)
        tied = self._embed if profile.tied_embeddings else None
        self._head = LMHead(parts, "lm_head", profile.vocab_size, profile.hidden_size, tied)
        self._rope = Rope(profile.config, profile.head_dim, max_length, parts.device)
        self.attention_layers: Sequence[AttentionSpec] = [layer.attention.spec for layer in self._layers]
        if tied:
            self.ignored_weights = (*self.ignored_weights, r"lm_head\.weight")

    def forward(self, token_ids: Tensor, batch: StepBatch, plan: Any, caches: Sequence[Tensor]) -> Tensor:
        return self.forward_tapped(token_ids, batch, plan, caches, ())[0]

    def forward_tapped(
        self,
        token_ids: Tensor,
        batch: StepBatch,
        plan: Any,
        caches: Sequence[Tensor],
        layers: Sequence[int],
    ) -> tuple[Tensor, Sequence[Tensor]]:
        x, residual = self._embed(token_ids), None
        rope = self._rope(batch.positions)
        tapped = {}
        for index, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            x, residual = layer(x, residual, rope, plan, cache)
            if index in layers:
                tapped[index] = x + residual
        return self._norm(x, residual), [tapped[layer] for layer in layers]

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._embed(token_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def slots(self) -> list[WeightSlot]:
        slots = [*self._embed.slots(), *self._norm.slots(), *self._head.slots()]
        for layer in self._layers:
            slots += [*layer.input_norm.slots(), *layer.post_norm.slots()]
            slots += [*layer.attention.slots(), *layer.mlp.gate_up.slots(), *layer.mlp.down.slots()]
        return slots

    def finalize(self) -> None:
        for layer in self._layers:
            for linear in _linears(layer):
                linear.finalize()
        self._head.finalize()


def _linears(layer: LlamaLayer) -> tuple[Linear, ...]:
    return layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down


def _check(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act is {activation!r}; the Llama architecture needs 'silu'.")


def build_llama(ctx: Context, parts: Parts) -> LlamaForCausalLM:
    """The ``build`` of the Llama and Mistral records."""
    attention_bias = bool(ctx.model.config.get("attention_bias", False))
    style = DecoderStyle(
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(ctx.model.config.get("mlp_bias", False)),
    )
    return LlamaForCausalLM(parts, ctx.model, ctx.max_length, style)
