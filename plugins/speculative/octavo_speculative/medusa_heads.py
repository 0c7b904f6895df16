"""Medusa's heads: residual layers and an output layer each, without attention and so without a cache."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.contracts.attention import AttentionSpec, StepBatch
from octavo.contracts.model import WeightSlot
from octavo.contracts.proposer import Computed, DraftBody, DraftKit, Ends
from octavo.errors import CheckpointError
from octavo.layers import Linear, Part, Parts
from octavo.records import Context
from octavo_speculative.stored import stored_shapes

_NAME = re.compile(r"^(.*?)(\d+)\.(\d+)(\.linear)?\.(weight|bias)$")


class MedusaHeads:
    """``residual[i]`` are head i's residual layers, ``outputs[i]`` its output layer."""

    attention_layers: Sequence[AttentionSpec] = ()
    ignored_weights: Sequence[str] = ()

    def __init__(self, ctx: Context, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> None:
        hidden, vocab = ctx.model.hidden_size, ctx.model.vocab_size
        prefix, count, depth = _layout(shapes, ctx.model.path)

        def linear(name: str, size: int) -> Linear:
            return Linear(parts, [Part(name, size)], hidden, bias=f"{name}.bias" in shapes, division="none")

        self.residual = [
            [linear(f"{prefix}{head}.{place}.linear", hidden) for place in range(depth)] for head in range(count)
        ]
        self.outputs = [linear(f"{prefix}{head}.{depth}", vocab) for head in range(count)]
        self.dtype, self.device = parts.dtype, parts.device

    def logits(self, head: int, state: Tensor) -> Tensor:
        """Of the token ``head`` places behind the newest: [rows, hidden] to [rows, vocab]."""
        for layer in self.residual[head]:
            state = state + F.silu(layer(state))
        return self.outputs[head](state)

    def slots(self) -> list[WeightSlot]:
        return [slot for linear in self._linears() for slot in linear.slots()]

    def finalize(self) -> None:
        for linear in self._linears():
            linear.finalize()

    def _linears(self) -> list[Linear]:
        return [linear for layers in self.residual for linear in layers] + self.outputs


class Medusa:
    """A :class:`octavo.contracts.proposer.DeviceProposer`."""

    tap_layers: Sequence[int] = ()

    def __init__(self, body: DraftBody, hidden_size: int, most: int) -> None:
        heads: MedusaHeads = body.model
        self._heads = heads
        self.max_tokens = min(most, len(heads.outputs))
        self.carried_like: Tensor | None = torch.empty(0, hidden_size, dtype=heads.dtype, device=heads.device)

    def feed(self, computed: Computed) -> Tensor:
        return computed.hidden

    def catch_up(self, token_ids: Tensor, batch: StepBatch) -> None:
        """Nothing is remembered, so nothing is missed."""

    def propose(self, ends: Ends, count: int) -> Tensor:
        state = ends.carried
        assert state is not None
        guesses = [ends.pick(self._heads.logits(head, state), ends.positions + head + 1) for head in range(count)]
        return torch.stack(guesses, dim=1)


def build_medusa(kit: DraftKit, path: str, most: int) -> Medusa:
    """Load the heads at ``path``. Raises :class:`CheckpointError` where they don't fit."""
    shapes = stored_shapes(path)

    def build(ctx: Context, parts: Any) -> MedusaHeads:
        return MedusaHeads(ctx, parts, shapes)

    body = kit.body(path, dtype=kit.context.dtype, quantization="none", build=build, described=False)
    return Medusa(body, kit.context.model.hidden_size, most)


def _layout(shapes: Mapping[str, tuple[int, ...]], path: str) -> tuple[str, int, int]:
    """What stands before the numbers, how many heads there are, and how many residual layers each has."""
    found = [match for match in map(_NAME.match, shapes) if match]
    if not found or len(found) != len(shapes):
        raise CheckpointError(f"{path}: are no Medusa heads: tensors must be named 0.0.linear.weight, 0.1.weight …")
    heads = 1 + max(int(match[2]) for match in found)
    depth = 1 + max((int(match[3]) for match in found if match[4]), default=-1)
    return found[0][1], heads, depth
