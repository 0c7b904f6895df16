"""DoRA (arXiv 2402.09353): each output's weights are brought to a length of their own.

With the adapter the weight is ``m * V / |V|``, row by row, where ``V = W + s B A``. The row lengths need the base
weight, in whatever form it is stored; they are computed once, when an adapter is read. What is left for a step is a
factor a row, ``m / |V|``, on the base layer's output and on the low-rank product.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.contracts.lora import LoraPart, LoraSite

_CHUNK: Final = 512
"""Inputs whose weights exist at once."""


def row_gains(
    site: LoraSite, part: LoraPart, down: Tensor, up: Tensor, magnitude: Tensor, whole: Tensor | None
) -> Tensor:
    """float32 [local outputs] on the host. ``down`` [rank, inputs], ``up`` [rank, local outputs] with the scale in
    it, ``magnitude`` [local outputs]; ``whole`` [local vocabulary, hidden] where the adapter brings the weight.

    The site must hold whole rows: all inputs.
    """
    exact = torch.float32 if site.device.type == "cuda" else torch.float64
    low, high = down.to(site.device, exact), up.to(site.device, exact)
    total = torch.zeros(part.width, dtype=torch.float64, device=site.device)
    outputs = slice(part.offset, part.offset + part.width)
    for start in range(0, site.in_features, _CHUNK):
        stop = min(start + _CHUNK, site.in_features)
        if whole is None:
            base = site.columns(start, stop)[:, outputs]
        else:
            base = whole[start:stop] if site.kind == "embedding" else whole[:, start:stop].T
        weight = torch.addmm(base.to(site.device, exact), low[:, start:stop].T, high)
        total += weight.square().sum(0, dtype=torch.float64)
    return (magnitude.double() / total.sqrt().cpu()).float()


def equals_base(site: LoraSite, whole: Tensor) -> bool:
    """Whether ``whole`` [local vocabulary, hidden], in the site's dtype, is the base model's own weight."""
    inputs = site.in_shard.stop - site.in_shard.start
    for start in range(0, inputs, _CHUNK):
        stop = min(start + _CHUNK, inputs)
        base = site.columns(start, stop)[:, : site.width]
        mine = whole[start:stop] if site.kind == "embedding" else whole[:, start:stop].T
        if not torch.equal(base, mine.to(site.device)):
            return False
    return True
