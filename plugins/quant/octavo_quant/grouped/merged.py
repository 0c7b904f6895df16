"""Layers merged of several checkpoint layers, whose channels may each stand in an order of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo_quant.grouped.linear import grouped_linear
from octavo_quant.grouped.weights import GroupedWeights, dense_grouped, pack_grouped


def pack_merged(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    orders: Tensor | None,
    out_parts: Sequence[int],
    *,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
) -> list[GroupedWeights]:
    """Pack ``codes`` uint8 [out, in] of layers of ``out_parts`` outputs, in one piece where they allow it.

    ``orders`` int [parts, in]: the group of each input channel, where groups are not neighbours; other arguments
    as for :func:`octavo_quant.grouped.pack_grouped`. Groups that don't all have ``group_size`` channels here (a
    rank's piece of a layer with act-order) can't be packed: such a layer is kept dequantised.
    """
    if orders is None or bool((orders == _plain_order(orders, group_size)).all()):
        one = pack_grouped(codes.contiguous(), scales, zeros, bits=bits, group_size=group_size, dtype=dtype)
        return [one]
    alike = bool((orders == orders[0]).all())
    parts = [sum(out_parts)] if alike else list(out_parts)
    made, before = [], 0
    for part, order in zip(parts, orders, strict=False):
        rows = slice(before, before + part)
        mine = None if zeros is None else zeros[rows]
        made.append(_ordered(codes[rows], scales[rows], mine, order.long(), bits, group_size, dtype))
        before += part
    return made


def merged_linear(x: Tensor, weights: Sequence[GroupedWeights], bias: Tensor | None) -> Tensor:
    """``x`` [tokens, in] to [tokens, out] of all parts together."""
    if len(weights) == 1:
        return grouped_linear(x, weights[0], bias)
    out = torch.cat([grouped_linear(x, each, None) for each in weights], 1)
    return out if bias is None else out.add_(bias)


def _plain_order(orders: Tensor, group_size: int) -> Tensor:
    return torch.arange(orders.shape[1], device=orders.device) // group_size


def _ordered(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    order: Tensor,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
) -> GroupedWeights:
    counts = torch.bincount(order, minlength=scales.shape[1])
    if bool((counts == group_size).all()):
        permutation = torch.argsort(order, stable=True)
        return pack_grouped(
            codes[:, permutation].contiguous(),
            scales,
            zeros,
            bits=bits,
            group_size=group_size,
            permutation=permutation,
            dtype=dtype,
        )
    offset = float(2 ** (bits - 1)) if zeros is None else zeros.float()[:, order]
    weight = (codes.float() - offset) * scales.float()[:, order]
    return dense_grouped(weight, bits=bits, group_size=group_size, dtype=dtype)
