"""INT4 made of 16-bit checkpoints while they load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo_quant.grouped import GroupedWeights, grouped_linear, pack_grouped, priced
from octavo_quant.native_cpu import native_takes
from octavo_quant.skips import Skip, one_answer

_BITS = 4
_PIECE = 1 << 24  # weights quantised at once
_SHRINKS = tuple(1.0 - step / 40 for step in range(13))  # ranges that are tried: whole, to 70 %
_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Int4Linear:
    """A :class:`octavo.contracts.linear.LinearMethod` that reads plain weights.

    Each layer is quantised as soon as its last tensor is in: the model never exists in 16 bits as a whole.
    """

    group_size: int
    packed: bool = True

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        shape = (spec.out_features, spec.in_features)
        weight = ParamSpec(shape=shape, dtype=spec.dtype, out_axis=0, in_axis=1)
        group = group_for(spec.in_features, self.group_size)
        return priced(spec, {"weight": weight}, bits=_BITS, group=group, packed=self.packed)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> GroupedWeights:
        group = group_for(spec.in_features, self.group_size)
        weight = raw["weight"]
        native = native_takes(spec.in_features, group, spec.dtype, weight.device)
        codes, scales, zeros = (spread if native else quantise)(weight, group)
        return pack_grouped(codes, scales, zeros, bits=_BITS, group_size=group, dtype=spec.dtype)

    def apply(self, weights: GroupedWeights, x: Tensor, bias: Tensor | None) -> Tensor:
        return grouped_linear(x, weights, bias)


@dataclass(frozen=True, slots=True)
class Int4Scheme:
    """A :class:`octavo.contracts.linear.QuantScheme`."""

    method: Int4Linear
    skip: Skip

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        left_out = one_answer(spec, self.skip, "types") or group_for(spec.in_features, self.method.group_size) < 16
        return None if left_out else self.method


def group_for(width: int, wanted: int) -> int:
    """The largest size up to ``wanted`` that divides ``width`` and is ``wanted`` halved some times."""
    while width % wanted:
        wanted //= 2
    return wanted


def spread(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] to uint8 codes [out, in], float32 scales and real zero points [out, in / group]: 16 steps from each
    group's least weight to its largest. What was stored as GGUF's Q4_1 is found again."""
    grouped = weight.float().view(weight.shape[0], -1, group)
    low = grouped.amin(2)
    scales = ((grouped.amax(2) - low) / 15).clamp_(min=_TINY)
    codes = ((grouped - low.unsqueeze(2)) / scales.unsqueeze(2)).round_().clamp_(0, 15)
    return codes.to(torch.uint8).view_as(weight), scales, -low / scales


def quantise(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] to uint8 codes [out, in], float16 scales and uint8 zero points [out, in / group].

    To the nearest of 16 steps over a group's range (0 included); of several slightly smaller ranges the one with
    the least squared error is taken, since a single outlier costs all its neighbours.
    """
    rows, width = weight.shape
    codes = torch.empty((rows, width), dtype=torch.uint8, device=weight.device)
    scales = torch.empty((rows, width // group), dtype=torch.float16, device=weight.device)
    zeros = torch.empty((rows, width // group), dtype=torch.uint8, device=weight.device)
    step = max(1, _PIECE // width)
    for first in range(0, rows, step):
        piece = slice(first, min(rows, first + step))
        grouped = weight[piece].float().view(-1, width // group, group)
        scales[piece], zeros[piece], found = _best(grouped)
        codes[piece] = found.view(-1, width)
    return codes, scales, zeros


def _best(grouped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = grouped.amin(2).clamp_(max=0), grouped.amax(2).clamp_(min=0)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for shrink in _SHRINKS:
        tried = ((high - low) * (shrink / 15)).clamp_(min=_TINY).half().float().clamp_(min=2.0**-24)
        offset = (-low * shrink / tried).round_().clamp_(0, 15)
        error = (_values(_codes(grouped, tried, offset), tried, offset) - grouped).square_().sum(2)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, tried, scale), torch.where(better, offset, zero)
    return scale.half(), zero.to(torch.uint8), _codes(grouped, scale, zero).to(torch.uint8)


def _codes(grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (grouped / scale.unsqueeze(2)).round_().add_(zero.unsqueeze(2)).clamp_(0, 15)


def _values(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (codes - zero.unsqueeze(2)) * scale.unsqueeze(2)
