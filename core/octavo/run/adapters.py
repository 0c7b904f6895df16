"""One rank's adapters: in host memory by key, in device slots as plans say, and which row uses which slot."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.contracts.executor import StepPlan
from octavo.contracts.lora import AdapterFacts, HostAdapter, LoraBackend


class NoAdapters:
    """Stands in where there is no LoRA: the base model for every token."""

    variants: tuple[bool, ...] = (False,)
    """Kinds of steps to capture: without adapters, and with some."""

    def replays(self, plan: StepPlan) -> bool:
        """Whether a captured step serves the adapters of the plan's rows."""
        return True

    def uses(self, plan: StepPlan) -> bool:
        """Whether any of the plan's rows has an adapter."""
        return False

    def apply(self, plan: StepPlan) -> None:
        """Nothing changes."""

    def begin(self, plan: StepPlan) -> None:
        """Nothing to tell."""

    def begin_logits(self, rows: np.ndarray) -> None:
        """Nothing to tell."""

    def begin_rows(self, rows: Tensor, adapted: bool) -> None:
        """Nothing to tell."""

    def rest(self) -> None:
        """Nothing to tell."""


class RunnerAdapters(NoAdapters):
    """The adapters of a runner with ``max_rows`` rows (and one for padding, which uses the base model)."""

    variants = (False, True)

    def __init__(self, backend: LoraBackend, max_rows: int, device: torch.device) -> None:
        self._backend, self._device = backend, device
        self._host: dict[int, HostAdapter] = {}
        self._rows = np.zeros(max_rows + 1, np.int64)
        self._device_rows = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self._host)

    def add(self, key: int, path: str) -> AdapterFacts:
        """See :meth:`octavo.contracts.lora.AdapterExecutor.add_adapter`."""
        adapter = self._backend.read(path)
        self._host[key] = adapter
        return AdapterFacts(digest=adapter.digest, rank=adapter.rank, nbytes=adapter.nbytes)

    def remove(self, key: int) -> None:
        """Forget an adapter; a slot that it may be in keeps its copy."""
        self._host.pop(key, None)

    def apply(self, plan: StepPlan) -> None:
        """Change slots as the plan says, and note the slots of the rows that start."""
        for slot, key in plan.adapters:
            if key:
                self._backend.load(slot, self._host[key])
            else:
                self._backend.clear(slot)
        if plan.starts:
            for start in plan.starts:
                self._rows[start.row] = start.adapter_slot
            self._device_rows.copy_(self._pinned(self._rows), non_blocking=True)

    def begin(self, plan: StepPlan) -> None:
        """Tell the backend the slot of each of the plan's tokens."""
        host = np.repeat(self._rows[plan.rows], plan.counts)
        self._backend.begin(self._pinned(host).to(self._device, non_blocking=True), host)

    def begin_logits(self, rows: np.ndarray) -> None:
        """Tell the backend the slots of the coming logits, which belong to ``rows``."""
        self._backend.begin_logits(self._rows[rows])

    def begin_rows(self, rows: Tensor, adapted: bool) -> None:
        """The same for one token of each of ``rows`` (int64, on the device), while a graph is captured. Without
        ``adapted`` it is a graph for the base model alone."""
        host = None if adapted else np.zeros(len(rows), np.int64)
        self._backend.begin(self._device_rows.index_select(0, rows), host)

    def rest(self) -> None:
        """The base model for what is computed until the next step: a guesser may use the model's head."""
        nobody = np.zeros(0, np.int64)
        self._backend.begin(self._device_rows[:0], nobody)
        self._backend.begin_logits(nobody)

    def replays(self, plan: StepPlan) -> bool:
        return self._backend.replays(self._rows[plan.rows])

    def uses(self, plan: StepPlan) -> bool:
        return bool(self._rows[plan.rows].any())

    def _pinned(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.pin_memory()
