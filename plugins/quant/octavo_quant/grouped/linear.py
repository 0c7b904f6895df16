"""The product over grouped weights, wherever they lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_quant.grouped.weights import GroupedWeights


def grouped_linear(x: Tensor, weights: GroupedWeights, bias: Tensor | None) -> Tensor:
    """``x`` [tokens, in] to [tokens, out], ``x W^T + bias``, in ``x``'s dtype. Does not synchronise."""
    if weights.dense is None:
        from octavo_quant.grouped.launch import packed_linear

        return packed_linear(x, weights, bias)
    if weights.dense.layout == torch._mkldnn:  # type: ignore[attr-defined]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weights.dense, bias, "none", [], "")
        return out
    return F.linear(x, weights.dense, bias)
