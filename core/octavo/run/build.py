"""From a resolved configuration to a model with its weights in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from octavo.contracts.linear import ignored_weights
from octavo.contracts.model import CausalLM
from octavo.model.parallel import Ranks
from octavo.model.parts import Parts
from octavo.ops import build_ops
from octavo.run.memory import weight_bytes

if TYPE_CHECKING:
    from octavo.assemble import Resolved
    from octavo.contracts.loading import Progress


def build_parts(resolved: Resolved, device: torch.device, ranks: Ranks | None = None) -> Parts:
    """What the layers are built from: the chosen record of each slot, built."""
    ctx = resolved.context
    scheme = resolved.choices.get("quantization")
    attention = resolved.choices["attention"]
    lora = resolved.choices.get("lora")
    return Parts(
        dtype=getattr(torch, ctx.dtype),
        device=device,
        attention=attention.build(ctx, attention.options),
        ops=build_ops({choice.record.op: choice.build(ctx, choice.options) for choice in resolved.ops}),
        scheme=scheme.build(ctx, scheme.options) if scheme else None,
        ranks=ranks or Ranks(),
        lora=lora.build(ctx, lora.options) if lora else None,
    )


def build_model(resolved: Resolved, parts: Parts) -> CausalLM:
    """The architecture, with its parameters allocated on ``parts.device`` and nothing in them yet."""
    choice = resolved.choices["architecture"]
    model: CausalLM = choice.build(resolved.context, choice.options, parts)
    model.ignored_weights = (*model.ignored_weights, *ignored_weights(parts.scheme))
    return model


def load_model(resolved: Resolved, parts: Parts, progress: Progress) -> tuple[CausalLM, int]:
    """The model, loaded and finalised, and the bytes its weights take."""
    model = build_model(resolved, parts)
    choice = resolved.choices["loader"]
    size = weight_bytes(model)
    with torch.inference_mode():
        choice.build(resolved.context, choice.options).load(model, resolved.context.model, progress)
        model.finalize()
    return model, size
