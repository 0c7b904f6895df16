"""Hidden states from inside the target, for proposers that start from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.model import CausalLM, TappedLM


def forward_tapped(
    model: CausalLM,
    token_ids: Tensor,
    batch: StepBatch,
    plan: Any,
    caches: Sequence[Tensor],
    layers: Sequence[int],
) -> tuple[Tensor, Sequence[Tensor]]:
    """Final hidden states [tokens, hidden_size], normed, and the states behind each of ``layers``."""
    if not layers:
        return model.forward(token_ids, batch, plan, caches), ()
    assert isinstance(model, TappedLM)
    return model.forward_tapped(token_ids, batch, plan, caches, layers)
