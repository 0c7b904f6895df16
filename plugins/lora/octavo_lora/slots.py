"""The device slots: for each layer, buffers for all adapters that fit, allocated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.lora import HostAdapter, LoraSite
from octavo_lora.extras import ExtraLayer
from octavo_lora.groups import group_rows
from octavo_lora.pieces import PeftAdapter, Piece, bytes_of
from octavo_lora.reader import AdapterReader

BIASED, SCALED = 1, 2
"""Bits of the last number of ``facts``: the slot's adapter has a bias, and a factor on the base output."""


class SiteSlots:
    """Buffers of one linear layer, for slots 1 to ``slots`` (index 0 stands for the base model).

    ``down`` [slots + 1, parts, max_rank, inputs], ``up`` [slots + 1, max_rank, outputs] with the parts side by
    side, ``bias`` [slots + 1, outputs], ``gain`` float32 [slots + 1, outputs]. Behind a part's rank, and where
    ``facts`` says that there is nothing, stands what an earlier adapter has left.

    ``facts`` int32 [slots + 1, parts + 1] on the device: each part's rank, 0 where the adapter leaves it alone, and
    the bits ``BIASED`` and ``SCALED``. ``ranks`` and ``bits`` are the same on the host.
    """

    def __init__(self, site: LoraSite, slots: int, max_rank: int) -> None:
        self.site = site
        inputs = int(site.in_shard.stop - site.in_shard.start)
        self.down = self._zeros(slots + 1, len(site.parts), max_rank, inputs)
        self.up = self._zeros(slots + 1, max_rank, site.width)
        self.bias = self._zeros(slots + 1, site.width)
        self.gain = torch.ones((slots + 1, site.width), dtype=torch.float32, device=site.device)
        self.facts = torch.zeros((slots + 1, len(site.parts) + 1), dtype=torch.int32, device=site.device)
        self.ranks = [(0,) * len(site.parts) for _ in range(slots + 1)]
        self.bits = [0] * (slots + 1)

    @property
    def nbytes(self) -> int:
        """Device memory of the buffers."""
        return sum(map(bytes_of, (self.down, self.up, self.bias, self.gain, self.facts)))

    def load(self, slot: int, pieces: Mapping[int, Piece]) -> None:
        """Put an adapter's pieces, by part, into a slot, over what was there. Does not wait for the device."""
        bits = BIASED * any(piece.bias is not None for piece in pieces.values())
        bits |= SCALED * any(piece.gain is not None for piece in pieces.values())
        for index, piece in pieces.items():
            part = self.site.parts[index]
            rows = slice(part.offset, part.offset + part.width)
            self.down[slot, index, : piece.rank].copy_(piece.down, non_blocking=True)
            self.up[slot, : piece.rank, rows].copy_(piece.up, non_blocking=True)
            if bits & BIASED:
                _fill(self.bias[slot, rows], piece.bias, 0)
            if bits & SCALED:
                _fill(self.gain[slot, rows], piece.gain, 1)
        ranks = tuple(pieces[at].rank if at in pieces else 0 for at in range(len(self.site.parts)))
        if (ranks, bits) != (self.ranks[slot], self.bits[slot]):
            self.ranks[slot], self.bits[slot] = ranks, bits
            facts = torch.tensor([*ranks, bits], dtype=torch.int32)
            facts = facts if self.site.device.type != "cuda" else facts.pin_memory()
            self.facts[slot].copy_(facts, non_blocking=True)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.site.dtype, device=self.site.device)


class Shelf:
    """The slots of all layers of a model. The part that backends have in common."""

    def __init__(self, slots: int, max_rank: int, extra_bytes: int) -> None:
        self.slots, self.max_rank, self.extra_bytes = slots, max_rank, extra_bytes
        self.stores: dict[int, SiteSlots] = {}
        self.extras: dict[int, ExtraLayer] = {}
        self._sites: list[LoraSite] = []
        self._reader: AdapterReader | None = None

    @property
    def nbytes(self) -> int:
        """Device memory of all buffers."""
        return sum(store.nbytes for store in self.stores.values())

    @property
    def later_bytes(self) -> int:
        """Device memory that adapters of embedding and head may take."""
        return self.slots * self.extra_bytes if self.extras else 0

    def attach(
        self, site: LoraSite, make: Callable[[SiteSlots], Callable[[Tensor, Tensor], None]]
    ) -> Callable[[Tensor, Tensor], None]:
        """One more layer; ``make`` is asked for those inside the model."""
        at = len(self._sites)
        self._sites.append(site)
        if site.kind == "linear":
            self.stores[at] = SiteSlots(site, self.slots, self.max_rank)
            return make(self.stores[at])
        self.extras[at] = ExtraLayer(site)
        return self.extras[at]

    def read(self, path: str) -> PeftAdapter:
        """See :meth:`octavo.contracts.lora.LoraBackend.read`."""
        if self._reader is None:
            self._reader = AdapterReader(self._sites, self.max_rank, self.extra_bytes)
        return self._reader.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        """Put an adapter that ``read`` made into a slot of every layer."""
        assert isinstance(adapter, PeftAdapter)
        for at, store in self.stores.items():
            pieces = {index: adapter.pieces.get((at, index)) for index in range(len(store.site.parts))}
            store.load(slot, {index: piece for index, piece in pieces.items() if piece is not None})
        for at, extra in self.extras.items():
            extra.load(slot, adapter.pieces.get((at, 0)), adapter.whole.get(at))

    def clear(self, slot: int) -> None:
        """Empty a slot of every layer."""
        for store in self.stores.values():
            store.load(slot, {})
        for extra in self.extras.values():
            extra.load(slot, None, None)

    def begin(self, host: np.ndarray | None) -> None:
        """Tell embeddings of the step's tokens. ``None``: a graph is captured, and no adapter has any."""
        self._tell("embedding", host)
        if host is None:
            self._tell("head", None)

    def begin_logits(self, host: np.ndarray) -> None:
        """Tell heads of the rows of the coming logits."""
        self._tell("head", host)

    def replays(self, slots: np.ndarray) -> bool:
        """Whether none of these slots has anything for embedding and head."""
        return not any(extra.loaded and not extra.loaded.keys().isdisjoint(slots) for extra in self.extras.values())

    def _tell(self, kind: str, host: np.ndarray | None) -> None:
        for extra in self.extras.values():
            if extra.site.kind == kind:
                some = host if extra.loaded else None
                extra.groups = () if some is None else group_rows(some, extra.site.device, extra.loaded)


def _fill(target: Tensor, source: Tensor | None, default: float) -> None:
    if source is None:
        target.fill_(default)
    else:
        target.copy_(source, non_blocking=True)
