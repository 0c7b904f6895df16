"""The reference: LoRA in plain torch, one pair of products for each adapter of a step and each part of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from octavo.contracts.lora import HostAdapter, LoraLayer, LoraSite
from octavo_lora.groups import Group, group_rows
from octavo_lora.pieces import PeftAdapter
from octavo_lora.slots import BIASED, SCALED, Shelf, SiteSlots

EXTRA_BYTES = 32 * 2**20
"""Device memory of one adapter for embedding and head, where nothing else is set."""


class TorchLora:
    """A :class:`octavo.contracts.lora.LoraBackend`."""

    def __init__(self, slots: int, max_rank: int, extra_bytes: int = EXTRA_BYTES) -> None:
        self.slots = slots
        self.groups: Sequence[Group] = ()
        self._shelf = Shelf(slots, max_rank, extra_bytes)

    @property
    def reserved_bytes(self) -> int:
        return self._shelf.nbytes

    @property
    def later_bytes(self) -> int:
        return self._shelf.later_bytes

    def attach(self, site: LoraSite) -> LoraLayer:
        return self._shelf.attach(site, lambda store: TorchLayer(self, store))

    def read(self, path: str) -> PeftAdapter:
        return self._shelf.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        self._shelf.load(slot, adapter)

    def clear(self, slot: int) -> None:
        self._shelf.clear(slot)

    def begin(self, slots: Tensor, host: np.ndarray | None) -> None:
        assert host is not None  # not graph_safe
        self.groups = group_rows(host, slots.device)
        self._shelf.begin(host)

    def begin_logits(self, host: np.ndarray) -> None:
        self._shelf.begin_logits(host)

    def replays(self, slots: np.ndarray) -> bool:
        return not slots.any()


class TorchLayer:
    """The adapters of one linear layer."""

    def __init__(self, backend: TorchLora, store: SiteSlots) -> None:
        self._backend, self._store = backend, store

    def __call__(self, x: Tensor, out: Tensor) -> None:
        for group in self._backend.groups:
            if any(self._store.ranks[group.slot]):
                self._add(group, x, out)

    def _add(self, group: Group, x: Tensor, out: Tensor) -> None:
        store, slot = self._store, group.slot
        rows = x if group.index is None else x.index_select(0, group.index)
        for at, (part, rank) in enumerate(zip(store.site.parts, store.ranks[slot], strict=True)):
            if not rank:
                continue
            columns = slice(part.offset, part.offset + part.width)
            change = (rows @ store.down[slot, at, :rank].T) @ store.up[slot, :rank, columns]
            if store.bits[slot] & BIASED:
                change += store.bias[slot, columns]
            target = out[:, columns]
            if store.bits[slot] & SCALED:
                before = target if group.index is None else target.index_select(0, group.index)
                change += (before.float() * (store.gain[slot, columns] - 1)).to(change.dtype)
            if group.index is None:
                target.add_(change)
            else:
                target.index_add_(0, group.index, change)
