"""LoRA in two Triton launches a layer, for any mix of adapters; can be captured in a CUDA graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.lora import HostAdapter, LoraLayer, LoraSite
from octavo_lora.kernels import BLOCK_N, add_adapters
from octavo_lora.reader import PeftAdapter
from octavo_lora.slots import Shelf, SiteSlots


class TritonLora:
    """A :class:`octavo.contracts.lora.LoraBackend`."""

    def __init__(self, slots: int, max_rank: int) -> None:
        self.slots = slots
        self.order: Tensor | None = None  # None: only the base model in this step
        self.starts: Tensor | None = None
        self._shelf = Shelf(slots, max_rank)

    @property
    def reserved_bytes(self) -> int:
        return self._shelf.nbytes

    def attach(self, site: LoraSite) -> LoraLayer:
        return TritonLayer(self, self._shelf.attach(site))

    def read(self, path: str) -> PeftAdapter:
        return self._shelf.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        self._shelf.load(slot, adapter)

    def clear(self, slot: int) -> None:
        self._shelf.clear(slot)

    def begin(self, slots: Tensor, host: np.ndarray | None) -> None:
        if host is not None and not host.any():
            self.order = self.starts = None
            return
        grouped, self.order = torch.sort(slots, stable=True)
        edges = torch.arange(self.slots + 2, device=slots.device)
        self.starts = torch.searchsorted(grouped, edges)


class TritonLayer:
    """The adapters of one linear layer."""

    def __init__(self, backend: TritonLora, store: SiteSlots) -> None:
        self.store = store
        self._backend = backend
        blocks = [
            (index, column, part.offset + part.width)
            for index, part in enumerate(store.site.parts)
            for column in range(part.offset, part.offset + part.width, BLOCK_N)
        ]
        self._blocks = torch.tensor(blocks, dtype=torch.int32, device=store.site.device)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        order, starts = self._backend.order, self._backend.starts
        if order is not None and starts is not None:
            store = self.store
            add_adapters(x, out, store.down, store.up, store.bias, order, starts, self._blocks)
