"""Launches the kernels over packed grouped weights: tiles from ``tiles.json``, grids and scratch memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import torch
import triton
from torch import Tensor

from octavo.early import early_options
from octavo_quant.grouped.kernels import add_sparse_kernel, dequantise_kernel, product_kernel
from octavo_quant.grouped.packing import unit_size
from octavo_quant.grouped.weights import REAL_ZERO, GroupedWeights
from octavo_quant.scratch import early

_DEQUANTISE_ROWS, _DEQUANTISE_WARPS = 64, 8  # 32 registers a thread: as many threads as a multiprocessor holds
_FEWEST_UNITS = 2
COUNTERS = 1 << 16
"""Tiles of a product whose channels are split; of larger ones they are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """``block_m`` tokens by ``block_n`` outputs; input channels are split until about ``programs`` run at once.

    ``swap``: outputs take the tensor cores' first axis, so that dequantised weights stay in registers there.
    ``early``: started before the kernel ahead has ended, where the device can (programmatic dependent launch).
    """

    block_m: int
    block_n: int
    programs: int
    warps: int
    stages: int
    swap: bool
    early: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """``tile`` is for at most so many tokens, outputs and inputs."""

    tile: Tile
    tokens: int
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """The stored choices. Above all rules the weight is dequantised, ``dequantise_elements`` at a time."""

    rules: tuple[Rule, ...]
    dequantise_elements: int

    def pick(self, tokens: int, outputs: int, inputs: int) -> Tile | None:
        """The tile of the first rule that fits; ``None``: dequantise."""
        for rule in self.rules:
            if tokens <= rule.tokens and outputs <= rule.outputs and inputs <= rule.inputs:
                return rule.tile
        return None


@cache
def stored_tiles() -> Tiles:
    """What ``tiles.json`` says."""
    stored = json.loads(files("octavo_quant.grouped").joinpath("tiles.json").read_text())
    rules = []
    for entry in stored["hopper"]:
        limits = {name: entry.pop(name, 1 << 62) for name in ("tokens", "outputs", "inputs")}
        rules.append(Rule(tile=Tile(**entry), **limits))
    return Tiles(tuple(rules), stored["dequantise_elements"])


@dataclass(slots=True)
class Scratch:
    """Device memory that launches share. Nothing is ever given back: captured graphs hold its addresses."""

    device: torch.device
    counters: Tensor | None = None
    partials: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict)

    def counter(self) -> Tensor:
        """``COUNTERS`` int32, all 0 between launches."""
        if self.counters is None:
            self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=self.device)
        return self.counters

    def partial(self, size: int) -> Tensor:
        """At least ``size`` float32 of any content."""
        size = max(1 << 20, triton.next_power_of_2(size))
        if size not in self.partials:
            self.partials[size] = torch.empty(size, dtype=torch.float32, device=self.device)
        return self.partials[size]

    def weight(self, dtype: torch.dtype, size: int) -> Tensor:
        """``size`` elements of any content."""
        key = (dtype, size)
        if key not in self.weights:
            self.weights[key] = torch.empty(size, dtype=dtype, device=self.device)
        return self.weights[key]


@cache
def scratch(device: torch.device) -> Scratch:
    """The one of ``device``: products run one after another on one stream."""
    return Scratch(device)


def prepare(device: torch.device) -> None:
    """Make what must be there before a graph is captured: the counters' zeros would be part of the graph."""
    scratch(device).counter()


def splits_for(tile: Tile, tokens: int, outputs: int, units: int) -> tuple[int, int]:
    """Into how many programs the units of a tile are split, and how many each takes at most."""
    tiles = triton.cdiv(tokens, tile.block_m) * triton.cdiv(outputs, tile.block_n)
    wanted = max(1, min(tile.programs // tiles, units // _FEWEST_UNITS)) if tiles <= COUNTERS else 1
    span = triton.cdiv(units, wanted)
    return triton.cdiv(units, span), span


def product(x: Tensor, weights: GroupedWeights, bias: Tensor | None, tile: Tile) -> Tensor:
    """``x`` [tokens, in] by packed ``weights`` in one launch."""
    assert weights.words is not None
    tokens, width = x.shape
    outputs, units = weights.out_features, weights.words.shape[0]
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    unit = unit_size(weights.field)
    splits, span = splits_for(tile, tokens, outputs, units)
    grid = (triton.cdiv(outputs, tile.block_n), splits, triton.cdiv(tokens, tile.block_m))
    shared = scratch(x.device)
    partial = shared.partial(math.prod(grid) * tile.block_m * tile.block_n) if splits > 1 else out
    counter = shared.counter() if splits > 1 else out
    fast = x.is_cuda and weights.field == 4 and weights.zero < REAL_ZERO and x.dtype.itemsize == 2
    product_kernel[grid](
        x,
        weights.words,
        weights.words if weights.meta is None else weights.meta,
        out if weights.table is None else weights.table,
        out if bias is None else bias,
        out if weights.permutation is None else weights.permutation,
        out,
        partial,
        counter,
        tokens,
        outputs,
        width,
        units,
        span,
        splits,
        x.stride(0),
        out.stride(0),
        BITS=weights.bits,
        FIELD=weights.field,
        GROUP=weights.group_size,
        SEGMENT=math.gcd(weights.group_size, unit),
        ZERO=weights.zero,
        WIDE=weights.wide_scale,
        BIASED=bias is not None,
        PERMUTED=weights.permutation is not None,
        EVEN=width % unit == 0,
        FAST=fast,
        SWAP=tile.swap,
        SPLIT=splits > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        STAGES=tile.stages,
        num_warps=tile.warps,
        **(early(x.device) if tile.early else early_options(False)),
    )
    return out


def dequantise_rows(weights: GroupedWeights, first: int, out: Tensor) -> None:
    """Rows from ``first`` on of the weight, in the packed order of columns, into ``out`` [rows, in]."""
    assert weights.words is not None
    units, outputs = weights.words.shape[:2]
    unit = unit_size(weights.field)
    dequantise_kernel[(units, triton.cdiv(out.shape[0], _DEQUANTISE_ROWS))](
        weights.words,
        weights.words if weights.meta is None else weights.meta,
        out if weights.table is None else weights.table,
        out,
        first,
        out.shape[0],
        outputs,
        weights.in_features,
        BITS=weights.bits,
        FIELD=weights.field,
        GROUP=weights.group_size,
        SEGMENT=math.gcd(weights.group_size, unit),
        ZERO=weights.zero,
        WIDE=weights.wide_scale,
        EVEN=weights.in_features % unit == 0,
        BLOCK_N=_DEQUANTISE_ROWS,
        num_warps=_DEQUANTISE_WARPS,
        **early(out.device),
    )


def dequantised_product(x: Tensor, weights: GroupedWeights, bias: Tensor | None, elements: int) -> Tensor:
    """Through cuBLAS, some rows of the weight after the other dequantised into scratch memory."""
    tokens, width = x.shape
    outputs = weights.out_features
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    if weights.permutation is not None:
        x = x.index_select(1, weights.permutation)
    step = min(outputs, max(1, elements // width))
    step = triton.cdiv(outputs, triton.cdiv(outputs, step))
    step = min(outputs, triton.cdiv(step, 128) * 128)
    buffer = scratch(x.device).weight(x.dtype, max(elements, step * width))
    for first in range(0, outputs, step):
        rows = min(step, outputs - first)
        weight = buffer[: rows * width].view(rows, width)
        dequantise_rows(weights, first, weight)
        target = out[:, first : first + rows]
        if bias is None:
            torch.mm(x, weight.t(), out=target)
        else:
            torch.addmm(bias[first : first + rows], x, weight.t(), out=target)
    return out


def packed_linear(x: Tensor, weights: GroupedWeights, bias: Tensor | None) -> Tensor:
    """``x`` [tokens, in] to [tokens, out] by whichever way is quickest for so many tokens."""
    tiles = stored_tiles()
    x = x if x.stride(-1) == 1 else x.contiguous()
    tile = tiles.pick(x.shape[0], weights.out_features, weights.in_features)
    if tile is not None:
        return product(x, weights, bias, tile)
    return dequantised_product(x, weights, bias, tiles.dequantise_elements)


def add_sparse(x: Tensor, starts: Tensor, columns: Tensor, values: Tensor, out: Tensor) -> None:
    """Add to ``out`` [tokens, rows] the product of ``x`` [tokens, in] with a matrix of few entries, by rows:
    ``starts`` int32 [rows + 1], ``columns`` int32 and ``values`` float32 [entries]."""
    tokens = x.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    block_m = 1 if tokens == 1 else 16
    if tokens:
        add_sparse_kernel[(out.shape[1], triton.cdiv(tokens, block_m))](
            x,
            starts,
            columns,
            values,
            out,
            tokens,
            x.stride(0),
            out.stride(0),
            BLOCK_M=block_m,
            BLOCK=64,
            num_warps=1 if tokens == 1 else 4,
        )
