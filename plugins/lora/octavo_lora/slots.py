"""The device slots of one linear layer: buffers for all adapters that fit, allocated once."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from octavo.contracts.lora import LoraSite
from octavo_lora.reader import Piece


class SiteSlots:
    """Buffers of one site, for slots 1 to ``slots`` (index 0 stays zero: the base model).

    ``down`` [slots + 1, parts, max_rank, inputs], ``up`` [slots + 1, outputs, max_rank] with the parts one under
    the other, ``bias`` [slots + 1, outputs]. A part of a smaller rank leaves the rest of its rows zero.
    ``ranks[slot]`` gives each part's rank, 0 where the adapter leaves the part alone.
    """

    def __init__(self, site: LoraSite, slots: int, max_rank: int) -> None:
        self.site = site
        inputs = int(site.in_shard.stop - site.in_shard.start)
        self.down = self._zeros(slots + 1, len(site.parts), max_rank, inputs)
        self.up = self._zeros(slots + 1, site.width, max_rank)
        self.bias = self._zeros(slots + 1, site.width)
        self.ranks = [(0,) * len(site.parts) for _ in range(slots + 1)]
        self.biased = [False] * (slots + 1)

    @property
    def nbytes(self) -> int:
        """Device memory of the buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in (self.down, self.up, self.bias))

    def load(self, slot: int, pieces: Mapping[int, Piece]) -> None:
        """Put an adapter's pieces, by part, into a slot; clears what was there. Does not wait for the device."""
        self.clear(slot)
        for index, piece in pieces.items():
            part = self.site.parts[index]
            rank = piece.down.shape[0]
            rows = slice(part.offset, part.offset + part.width)
            self.down[slot, index, :rank].copy_(piece.down, non_blocking=True)
            self.up[slot, rows, :rank].copy_(piece.up, non_blocking=True)
            if piece.bias is not None:
                self.bias[slot, rows].copy_(piece.bias, non_blocking=True)
        self.ranks[slot] = tuple(
            pieces[index].down.shape[0] if index in pieces else 0 for index in range(len(self.site.parts))
        )
        self.biased[slot] = any(piece.bias is not None for piece in pieces.values())

    def clear(self, slot: int) -> None:
        """Nothing is in the slot."""
        if any(self.ranks[slot]):
            for buffer in (self.down, self.up, self.bias):
                buffer[slot].zero_()
            self.ranks[slot], self.biased[slot] = (0,) * len(self.site.parts), False

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=self.site.dtype, device=self.site.device)
