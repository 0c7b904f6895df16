"""What every layer of a model is built from, handed down once instead of looked up."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from octavo.contracts.attention import AttentionBackend
from octavo.contracts.linear import LinearMethod, LinearSpec, QuantScheme
from octavo.contracts.lora import LoraBackend
from octavo.model.parallel import Ranks
from octavo.model.unquantized import Unquantized
from octavo.ops import Ops


@dataclass(frozen=True, slots=True)
class Parts:
    """Operations, attention, quantisation, adapters, device and rank of a model under construction."""

    dtype: torch.dtype
    device: torch.device
    attention: AttentionBackend
    ops: Ops = field(default_factory=Ops)
    scheme: QuantScheme | None = None
    ranks: Ranks = field(default_factory=Ranks)
    lora: LoraBackend | None = None

    def method_for(self, spec: LinearSpec) -> LinearMethod:
        """The scheme's method for a layer, or the unquantised one."""
        method = self.scheme.method_for(spec) if self.scheme else None
        return method or Unquantized(self.ops.linear)
