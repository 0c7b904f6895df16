"""The device slots: for each linear layer, buffers for all adapters that fit, allocated once."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from octavo.contracts.lora import HostAdapter, LoraSite
from octavo_lora.reader import AdapterReader, PeftAdapter, Piece


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


class Shelf:
    """The slots of all layers of a model. The part that backends have in common."""

    def __init__(self, slots: int, max_rank: int) -> None:
        self.slots, self.max_rank = slots, max_rank
        self.stores: list[SiteSlots] = []
        self._reader: AdapterReader | None = None

    @property
    def nbytes(self) -> int:
        """Device memory of all buffers."""
        return sum(store.nbytes for store in self.stores)

    def attach(self, site: LoraSite) -> SiteSlots:
        """Buffers for one more layer."""
        self.stores.append(SiteSlots(site, self.slots, self.max_rank))
        return self.stores[-1]

    def read(self, path: str) -> PeftAdapter:
        """See :meth:`octavo.contracts.lora.LoraBackend.read`."""
        if self._reader is None:
            self._reader = AdapterReader([store.site for store in self.stores], self.max_rank)
        return self._reader.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        """Put an adapter that ``read`` made into a slot of every layer."""
        assert isinstance(adapter, PeftAdapter)
        for at, store in enumerate(self.stores):
            pieces = {index: adapter.pieces.get((at, index)) for index in range(len(store.site.parts))}
            store.load(slot, {index: piece for index, piece in pieces.items() if piece is not None})

    def clear(self, slot: int) -> None:
        """Empty a slot of every layer."""
        for store in self.stores:
            store.clear(slot)
