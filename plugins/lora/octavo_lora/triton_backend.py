"""LoRA in two Triton launches a layer, for any mix of adapters; can be captured in a CUDA graph."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from octavo.contracts.lora import HostAdapter, LoraLayer, LoraSite
from octavo_lora.launch import SiteLaunch
from octavo_lora.pieces import PeftAdapter
from octavo_lora.slots import Shelf, SiteSlots
from octavo_lora.tiles import Tiles, device_tiles, host_tiles


class TritonLora:
    """A :class:`octavo.contracts.lora.LoraBackend`. ``early``: the device knows dependent launches (Hopper)."""

    def __init__(self, slots: int, max_rank: int, extra_bytes: int, early: bool = False) -> None:
        self.slots, self.early = slots, early
        self.tiles: Tiles | None = None  # None: only the base model in this step
        self._shelf = Shelf(slots, max_rank, extra_bytes)
        self._warm = False

    @property
    def reserved_bytes(self) -> int:
        return self._shelf.nbytes

    @property
    def later_bytes(self) -> int:
        return self._shelf.later_bytes

    def attach(self, site: LoraSite) -> LoraLayer:
        return self._shelf.attach(site, lambda store: TritonLayer(self, store))

    def read(self, path: str) -> PeftAdapter:
        if not self._warm:  # here, on a thread of its own, instead of in the first step that needs a kernel
            self._warm = True
            for store in self._shelf.stores.values():
                SiteLaunch(store, self.early).compile()
        return self._shelf.read(path)

    def load(self, slot: int, adapter: HostAdapter) -> None:
        self._shelf.load(slot, adapter)

    def clear(self, slot: int) -> None:
        self._shelf.clear(slot)

    def begin(self, slots: Tensor, host: np.ndarray | None) -> None:
        self.tiles = device_tiles(slots, self.slots) if host is None else host_tiles(host, slots.device)
        self._shelf.begin(host)

    def begin_logits(self, host: np.ndarray) -> None:
        self._shelf.begin_logits(host)

    def replays(self, slots: np.ndarray) -> bool:
        return self._shelf.replays(slots)


class TritonLayer:
    """The adapters of one linear layer."""

    def __init__(self, backend: TritonLora, store: SiteSlots) -> None:
        self._backend, self._launch = backend, SiteLaunch(store, backend.early)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        if self._backend.tiles is not None:
            self._launch(x, out, self._backend.tiles)
