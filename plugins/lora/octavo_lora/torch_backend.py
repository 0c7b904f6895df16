"""The reference: LoRA in plain torch, one pair of products for each adapter of a step and each part of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.lora import HostAdapter, LoraLayer, LoraSite
from octavo_lora.reader import AdapterReader, PeftAdapter
from octavo_lora.slots import SiteSlots


@dataclass(frozen=True, slots=True)
class Group:
    """The tokens of one slot: their indices in the step (int64, on the device), or ``None`` for all of them."""

    slot: int
    index: Tensor | None


class TorchLora:
    """A :class:`octavo.contracts.lora.LoraBackend`."""

    def __init__(self, slots: int, max_rank: int) -> None:
        self.slots = slots
        self.reserved_bytes = 0
        self.groups: list[Group] = []
        self._max_rank = max_rank
        self._layers: list[TorchLayer] = []
        self._reader: AdapterReader | None = None

    def attach(self, site: LoraSite) -> LoraLayer:
        layer = TorchLayer(self, SiteSlots(site, self.slots, self._max_rank))
        self._layers.append(layer)
        self.reserved_bytes += layer.store.nbytes
        return layer

    def read(self, path: str) -> PeftAdapter:
        if self._reader is None:
            self._reader = AdapterReader([layer.store.site for layer in self._layers], self._max_rank)
        return self._reader.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        assert isinstance(adapter, PeftAdapter)
        for at, layer in enumerate(self._layers):
            pieces = {index: adapter.pieces.get((at, index)) for index in range(len(layer.store.site.parts))}
            layer.store.load(slot, {index: piece for index, piece in pieces.items() if piece is not None})

    def clear(self, slot: int) -> None:
        for layer in self._layers:
            layer.store.clear(slot)

    def begin(self, slots: Tensor, host: np.ndarray | None) -> None:
        assert host is not None  # not graph_safe
        used = np.unique(host)
        if len(used) == 1:
            self.groups = [Group(int(used[0]), None)] if used[0] else []
            return
        self.groups = [
            Group(int(slot), torch.from_numpy(np.flatnonzero(host == slot)).to(slots.device))
            for slot in used
            if slot
        ]


class TorchLayer:
    """The adapters of one linear layer."""

    def __init__(self, backend: TorchLora, store: SiteSlots) -> None:
        self.store = store
        self._backend = backend

    def __call__(self, x: Tensor, out: Tensor) -> None:
        for group in self._backend.groups:
            self._add(group, x, out)

    def _add(self, group: Group, x: Tensor, out: Tensor) -> None:
        store, slot = self.store, group.slot
        if not any(store.ranks[slot]):
            return
        rows = x if group.index is None else x.index_select(0, group.index)
        for at, (part, rank) in enumerate(zip(store.site.parts, store.ranks[slot], strict=True)):
            if not rank:
                continue
            columns = slice(part.offset, part.offset + part.width)
            change = (rows @ store.down[slot, at, :rank].T) @ store.up[slot, columns, :rank].T
            if store.biased[slot]:
                change += store.bias[slot, columns]
            target = out[:, columns]
            if group.index is None:
                target.add_(change)
            else:
                target.index_add_(0, group.index, change)
