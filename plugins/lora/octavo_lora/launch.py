"""Launching the kernels: which tiles, how the inputs are split, and what a layer prepares once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from octavo_lora.kernels import expand_kernel, shrink_kernel
from octavo_lora.slots import SiteSlots
from octavo_lora.tiles import Tiles

_SPAN: Final = 1024
"""Inputs that one program of a small step sums up; more of them in parallel where the layer has more."""
_COLUMNS: Final = {16: 256, 32: 128, 64: 128}
"""Output columns a program, by tokens of a tile."""


def splits_of(inputs: int, block: int) -> int:
    """Programs among which a sum over ``inputs`` is split: many where tiles are few. Depends on shapes only."""
    return max(1, min(8, -(-inputs // _SPAN)) * 16 // block)


def rank_blocks(parts: int, max_rank: int) -> tuple[int, int]:
    """Ranks a program of each kernel, powers of two from 16."""
    return min(64, _power(parts * max_rank)), min(32, _power(max_rank))


def shrink_options(block: int, itemsize: int) -> dict[str, int]:
    """Compile-time settings of the shrink kernel."""
    return {"BLOCK_K": (128 if block == 16 else 64) * 2 // itemsize, "num_warps": 4, "num_stages": 4}


def expand_options(block: int) -> dict[str, int]:
    """Compile-time settings of the expand kernel."""
    return {"BLOCK_N": _COLUMNS[block], "num_warps": 4 if block < 64 else 8, "num_stages": 1}


class SiteLaunch:
    """Adds a step's adapters to one layer's output."""

    def __init__(self, store: SiteSlots) -> None:
        self._store = store
        self._inputs = store.down.shape[3]
        self._lows = len(store.site.parts) * store.down.shape[2]
        ends = [end for part in store.site.parts for end in (part.offset, part.offset + part.width)]
        self._aligned = all(end % 16 == 0 for end in ends)
        self._blocks = {
            width: torch.tensor(_column_blocks(store, width), dtype=torch.int32, device=store.site.device)
            for width in sorted(set(_COLUMNS.values()))
        }

    def compile(self) -> None:
        """Have the kernels compiled for steps of all sizes. Nothing is computed."""
        site = self._store.site
        x = torch.empty((1, self._inputs), dtype=site.dtype, device=site.device)
        out = torch.empty((1, site.width), dtype=site.dtype, device=site.device)
        nothing = torch.zeros((1, 3), dtype=torch.int64, device=site.device)
        for block in _COLUMNS:
            self(x, out, Tiles(nothing[0, :1], nothing, 1, block))

    def __call__(self, x: Tensor, out: Tensor, tiles: Tiles) -> None:
        """``x`` [tokens, inputs] and ``out`` [tokens, outputs], rows contiguous."""
        store, block, tokens = self._store, tiles.block, len(x)
        splits = splits_of(self._inputs, block)
        shrink, expand = shrink_options(block, x.element_size()), expand_options(block)
        span = -(-self._inputs // (splits * shrink["BLOCK_K"])) * shrink["BLOCK_K"]
        low_block, up_block = rank_blocks(len(store.site.parts), store.down.shape[2])
        low = torch.empty((splits, tokens, self._lows), dtype=torch.float32, device=x.device)
        shared = {"MAX_RANK": store.down.shape[2], "SPLITS": splits, "BLOCK_M": block}
        shrink_kernel[(tiles.count, -(-self._lows // low_block) * splits)](
            x, store.down, store.facts, low, tiles.order, tiles.tiles, tokens, self._inputs, span, x.stride(0),
            self._lows, store.facts.shape[1], BLOCK_R=low_block, EVEN=self._inputs % shrink["BLOCK_K"] == 0,
            **shared, **shrink,
        )  # fmt: skip
        blocks = self._blocks[expand["BLOCK_N"]]
        expand_kernel[(tiles.count, len(blocks))](
            low, store.up, store.bias, store.gain, store.facts, out, tiles.order, tiles.tiles, blocks, tokens,
            store.site.width, out.stride(0), self._lows, store.facts.shape[1], BLOCK_R=up_block,
            ALIGNED=self._aligned, **shared, **expand,
        )  # fmt: skip


def _column_blocks(store: SiteSlots, width: int) -> Sequence[tuple[int, int, int]]:
    """Part, first column and end of its part, for each block of columns: none crosses from one part to the next."""
    return [
        (index, column, part.offset + part.width)
        for index, part in enumerate(store.site.parts)
        for column in range(part.offset, part.offset + part.width, width)
    ]


def _power(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())
