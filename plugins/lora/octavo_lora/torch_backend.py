"""The reference: LoRA in plain torch, one pair of products for each adapter of a step and each part of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.lora import HostAdapter, LoraLayer, LoraSite
from octavo_lora.reader import PeftAdapter
from octavo_lora.slots import Shelf, SiteSlots


@dataclass(frozen=True, slots=True)
class Group:
    """The tokens of one slot: their indices in the step (int64, on the device), or ``None`` for all of them."""

    slot: int
    index: Tensor | None


class TorchLora:
    """A :class:`octavo.contracts.lora.LoraBackend`."""

    def __init__(self, slots: int, max_rank: int) -> None:
        self.slots = slots
        self.groups: list[Group] = []
        self._shelf = Shelf(slots, max_rank)

    @property
    def reserved_bytes(self) -> int:
        return self._shelf.nbytes

    def attach(self, site: LoraSite) -> LoraLayer:
        return TorchLayer(self, self._shelf.attach(site))

    def read(self, path: str) -> PeftAdapter:
        return self._shelf.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        self._shelf.load(slot, adapter)

    def clear(self, slot: int) -> None:
        self._shelf.clear(slot)

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
