"""The one in-memory form of grouped integer weights, whatever checkpoint they came from.

A weight is ``(code - zero) * scale``; scale and zero are shared by ``group_size`` neighbouring input channels of
one output. Where a checkpoint orders its groups by activation (act-order), columns are brought into that order
once, at load, and the layer's input is gathered in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_quant.grouped.packing import CONTAINERS, WORDS, pack_codes, unit_size, unpack_codes

NO_ZERO, WHOLE_ZERO, REAL_ZERO, TABLE = 0, 1, 2, 3
_SMALLEST_HALF = 2.0**-14


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedWeights:
    """What :func:`octavo_quant.grouped.grouped_linear` multiplies by. Made by :func:`pack_grouped`.

    On a GPU ``words`` int32 [units, out, 16] holds the codes (see :mod:`octavo_quant.grouped.packing`) and ``meta``
    int32 [groups, out] scale and zero point, 16 bits each: the scale as float16 (bfloat16 where ``wide_scale``) in
    the low half, the zero point as float16 in the high half. ``zero`` says whether zero points are the middle code
    (``NO_ZERO``), whole numbers or real ones. With ``TABLE`` a code is a place in its output's row of ``table``
    [out, 2 ** bits] instead. Where the kernels can't take the shape, and on a CPU, ``dense`` holds
    the dequantised weight [out, in] instead: on a CPU nothing in torch beats the float32 product at all batch
    sizes.
    ``permutation`` int32 [in]: column ``j`` belongs to input ``permutation[j]``.
    """

    out_features: int
    in_features: int
    bits: int
    group_size: int
    dtype: torch.dtype
    words: Tensor | None = None
    meta: Tensor | None = None
    table: Tensor | None = None
    zero: int = NO_ZERO
    wide_scale: bool = False
    permutation: Tensor | None = None
    dense: Tensor | None = None

    @property
    def field(self) -> int:
        """Bits of the field that holds a code."""
        return CONTAINERS[self.bits]


def pack_grouped(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    *,
    bits: int,
    group_size: int,
    permutation: Tensor | None = None,
    dtype: torch.dtype,
) -> GroupedWeights:
    """Pack one layer for the device that ``codes`` lies on.

    ``codes`` uint8 [out, in], ``scales`` [out, groups] of any floating type, ``zeros`` [out, groups] whole or real
    numbers, or ``None`` for ``2 ** (bits - 1)``. ``group_size`` -1 stands for all input channels. Column ``j``
    belongs to input ``permutation[j]``. ``dtype`` is that of the activations. Raises ``ValueError`` where sizes do
    not fit each other.
    """
    width = codes.shape[1]
    group = width if group_size == -1 else group_size
    _check(codes, scales, zeros, bits, group, width)
    if codes.device.type != "cuda" or not fits_kernels(width, group, bits):
        dense = dequantise(codes, scales, zeros, bits, group)
        if permutation is not None:
            dense = torch.empty_like(dense).index_copy_(1, permutation.long(), dense)
        return dense_grouped(dense, bits=bits, group_size=group, dtype=dtype)
    from octavo_quant.grouped.launch import prepare

    prepare(codes.device)
    return pack_for_kernels(codes, scales, zeros, bits=bits, group_size=group, permutation=permutation, dtype=dtype)


def dense_grouped(weight: Tensor, *, bits: int, group_size: int, dtype: torch.dtype) -> GroupedWeights:
    """A weight [out, in] that stays dequantised, in ``dtype``."""
    rows, width = weight.shape
    return GroupedWeights(
        out_features=rows,
        in_features=width,
        bits=bits,
        group_size=group_size,
        dtype=dtype,
        dense=prepare_dense(weight.to(dtype)),
    )


def pack_for_kernels(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    *,
    bits: int,
    group_size: int,
    permutation: Tensor | None,
    dtype: torch.dtype,
) -> GroupedWeights:
    """The packed form, on any device. Arguments as for :func:`pack_grouped`, which chooses."""
    rows, width = codes.shape
    wide = not _fits_half(scales)
    return GroupedWeights(
        out_features=rows,
        in_features=width,
        bits=bits,
        group_size=group_size,
        dtype=dtype,
        words=pack_codes(codes, CONTAINERS[bits]),
        meta=pack_meta(scales, zeros, bits, wide),
        zero=zero_kind(zeros),
        wide_scale=wide,
        permutation=None if permutation is None else permutation.to(torch.int32),
    )


def pack_table(codes: Tensor, table: Tensor, *, bits: int, dtype: torch.dtype) -> GroupedWeights:
    """Weights out of a table: ``codes`` uint8 [out, in] into ``table`` [out, 2 ** bits] (SqueezeLLM,
    arXiv 2306.07629). Packed on any device; on a CPU take ``table.gather(1, codes)``."""
    rows, width = codes.shape
    return GroupedWeights(
        out_features=rows,
        in_features=width,
        bits=bits,
        group_size=width,
        dtype=dtype,
        words=pack_codes(codes, CONTAINERS[bits]),
        table=table.to(dtype).contiguous(),
        zero=TABLE,
    )


def fits_kernels(width: int, group: int, bits: int) -> bool:
    """Whether the kernels can take such groups: each step of 16 channels needs one scale."""
    return bits in CONTAINERS and math.gcd(group, unit_size(CONTAINERS[bits])) % WORDS == 0 and width % group == 0


def zero_kind(zeros: Tensor | None) -> int:
    """``NO_ZERO``, ``WHOLE_ZERO`` or ``REAL_ZERO``."""
    if zeros is None:
        return NO_ZERO
    if not zeros.is_floating_point() or bool((zeros == zeros.round()).all()):
        return WHOLE_ZERO
    return REAL_ZERO


def dequantise(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Tensor:
    """float32 [out, in], by the definition."""
    rows, width = codes.shape
    values = codes.to(torch.float32).view(rows, -1, group_size)
    offset = float(2 ** (bits - 1)) if zeros is None else zeros.to(torch.float32).unsqueeze(2)
    return values.sub_(offset).mul_(scales.to(torch.float32).unsqueeze(2)).view(rows, width)


def unpack_grouped(weights: GroupedWeights) -> Tensor:
    """The dequantised weight [out, in] in float32, its columns in the order of the layer's inputs."""
    if weights.words is None:
        assert weights.dense is not None
        dense = weights.dense.to_dense() if weights.dense.layout != torch.strided else weights.dense
        return dense.float()
    codes = unpack_codes(weights.words, weights.field, weights.in_features)
    if weights.table is not None:
        return weights.table.float().gather(1, codes.long())
    assert weights.meta is not None
    scale, zero = unpack_meta(weights.meta, weights.wide_scale)
    zeros = None if weights.zero == NO_ZERO else zero.T
    values = dequantise(codes, scale.T, zeros, weights.bits, weights.group_size)
    if weights.permutation is None:
        return values
    return torch.empty_like(values).index_copy_(1, weights.permutation.long(), values)


def pack_meta(scales: Tensor, zeros: Tensor | None, bits: int, wide: bool) -> Tensor:
    """Scale and zero point of each group in one int32, [groups, out]."""
    kind = torch.bfloat16 if wide else torch.float16
    low = scales.T.to(kind).contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    if zeros is None:
        high = torch.full_like(scales.T, float(2 ** (bits - 1)), dtype=torch.float16)
    else:
        high = zeros.T.to(torch.float16)
    return (low | (high.contiguous().view(torch.int16).to(torch.int32) << 16)).contiguous()


def unpack_meta(meta: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """Scales and zero points [groups, out], float32."""
    low = (meta & 0xFFFF).to(torch.int32)
    low = torch.where(low >= 1 << 15, low - (1 << 16), low).to(torch.int16)
    scale = low.view(torch.bfloat16 if wide else torch.float16)
    return scale.float(), (meta >> 16).to(torch.int16).view(torch.float16).float()


def prepare_dense(weight: Tensor) -> Tensor:
    """On a CPU in float32: oneDNN's blocked layout, as the core's own linear layers use it."""
    plain = weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch._C._has_mkldnn
    if plain or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _fits_half(scales: Tensor) -> bool:
    """Whether float16 holds them all without losing more than its own rounding."""
    size = scales.abs().float()
    return bool(((size == 0) | ((size >= _SMALLEST_HALF) & (size <= torch.finfo(torch.float16).max))).all())


def _check(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group: int, width: int) -> None:
    if bits not in CONTAINERS:
        raise ValueError(f"codes of {bits} bits are not supported; {sorted(CONTAINERS)} are.")
    if group <= 0 or width % group:
        raise ValueError(f"a group size of {group} does not divide {width} input channels.")
    wanted = (codes.shape[0], width // group)
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} are {list(tensor.shape)}, but must be {list(wanted)}.")
