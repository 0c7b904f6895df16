"""Launching the kernels: which tiles, how the inputs are split, and what a layer prepares once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from octavo.early import early_options
from octavo_lora.kernels import expand_kernel, shrink_kernel
from octavo_lora.slots import SiteSlots
from octavo_lora.tiles import Tiles

_SPAN: Final = 1024
"""Inputs that one program sums up where programs are few."""
_MOST_SPLITS: Final = 8
_PROGRAMS: Final = 128
"""Programs that keep a large GPU busy: sums are not split further for more."""
_COLUMNS: Final = {16: 256, 32: 128, 64: 128}
"""Output columns of a block, by tokens of a tile."""
_STRIP: Final = 4
"""Blocks that a program goes through, where there are ``_LONG`` of them and more."""
_LONG: Final = 2048


def splits_of(inputs: int, block: int, count: int) -> int:
    """Programs among which a sum over ``inputs`` is split, a power of two. Of small tiles ``count`` says how many
    there may be, not how many there are; they are split as if there were few."""
    most = min(_MOST_SPLITS, -(-inputs // _SPAN))
    wanted = most if block < 64 else min(most, max(1, _PROGRAMS // count))
    return 1 << (wanted.bit_length() - 1)


def rank_blocks(parts: int, max_rank: int) -> tuple[int, int]:
    """Ranks a program of each kernel, powers of two from 16."""
    return min(64, _power(parts * max_rank)), min(32, _power(max_rank))


def shrink_options(block: int, itemsize: int) -> dict[str, int]:
    """Compile-time settings of the shrink kernel."""
    return {"BLOCK_K": (128 if block == 16 else 64) * 2 // itemsize, "num_warps": 4, "num_stages": 4}


def expand_options(block: int) -> dict[str, int]:
    """Compile-time settings of the expand kernel."""
    return {"BLOCK_N": _COLUMNS[block], "num_warps": 4 if block < 64 else 8, "num_stages": 2}


class SiteLaunch:
    """Adds a step's adapters to one layer's output. ``early``: the device knows dependent launches (Hopper)."""

    def __init__(self, store: SiteSlots, early: bool = False) -> None:
        self._store = store
        self._early: dict[str, Any] = early_options(early)
        self._inputs = store.down.shape[3]
        self._lows = len(store.site.parts) * store.down.shape[2]
        ends = [end for part in store.site.parts for end in (part.offset, part.offset + part.width)]
        self._aligned = all(end % 16 == 0 for end in ends)
        self._strips = {
            (width, length): torch.tensor(
                _strips(store, width * length), dtype=torch.int32, device=store.site.device
            )
            for width in sorted(set(_COLUMNS.values()))
            for length in (1, _STRIP)
        }

    def compile(self) -> None:
        """Have the kernels compiled for steps of all sizes. Nothing is computed."""
        site = self._store.site
        x = torch.empty((1, self._inputs), dtype=site.dtype, device=site.device)
        out = torch.empty((1, site.width), dtype=site.dtype, device=site.device)
        nothing = torch.zeros((_PROGRAMS, 3), dtype=torch.int64, device=site.device)
        for block in _COLUMNS:
            for count in (1, 32, 64, 128) if block == 64 else (1,):
                self(x, out, Tiles(nothing[0, :1], nothing, count, block))

    def __call__(self, x: Tensor, out: Tensor, tiles: Tiles) -> None:
        """``x`` [tokens, inputs] and ``out`` [tokens, outputs], rows contiguous."""
        store, block, tokens = self._store, tiles.block, len(x)
        splits = splits_of(self._inputs, block, tiles.count)
        shrink, expand = shrink_options(block, x.element_size()), expand_options(block)
        span = -(-self._inputs // (splits * shrink["BLOCK_K"])) * shrink["BLOCK_K"]
        low_block, up_block = rank_blocks(len(store.site.parts), store.down.shape[2])
        low = torch.empty((splits, tokens, self._lows), dtype=torch.float32, device=x.device)
        shared = self._early | {"MAX_RANK": store.down.shape[2], "SPLITS": splits, "BLOCK_M": block}
        shrink_kernel[(tiles.count, -(-self._lows // low_block) * splits)](
            x, store.down, store.facts, low, tiles.order, tiles.tiles, tokens, self._inputs, span, x.stride(0),
            self._lows, store.facts.shape[1], BLOCK_R=low_block, EVEN=self._inputs % shrink["BLOCK_K"] == 0,
            **shared, **shrink,
        )  # fmt: skip
        width = expand["BLOCK_N"]
        strips = self._strips[width, 1]
        if tiles.count * len(strips) >= _LONG:
            strips = self._strips[width, _STRIP]
        expand_kernel[(tiles.count, len(strips))](
            low, store.up, store.bias, store.gain, store.facts, out, tiles.order, tiles.tiles, strips, tokens,
            store.site.width, out.stride(0), self._lows, store.facts.shape[1], BLOCK_R=up_block,
            ALIGNED=self._aligned, **shared, **expand,
        )  # fmt: skip


def _strips(store: SiteSlots, width: int) -> Sequence[tuple[int, int, int]]:
    """Part, first column and end of each strip of columns: none crosses from one part to the next."""
    return [
        (index, column, min(column + width, part.offset + part.width))
        for index, part in enumerate(store.site.parts)
        for column in range(part.offset, part.offset + part.width, width)
    ]


def _power(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())
