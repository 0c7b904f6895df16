"""The LoRA slot: many low-rank adapters over one base model, a few of them on the device at a time.

An adapter is read and checked into host memory once (``read``), copied into one of a few device *slots* when a
request needs it (``load``), and applied to the tokens of the rows that use that slot. Slot 0 is the base model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraPart:
    """One checkpoint layer inside a merged one.

    ``out_features`` is its whole output size, ``out_shard`` this rank's piece of it, which stands at ``offset`` in
    the merged layer's output.
    """

    module: str
    out_features: int
    out_shard: slice
    offset: int

    @property
    def width(self) -> int:
        """Outputs of this part on this rank."""
        return int(self.out_shard.stop - self.out_shard.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSite:
    """One layer that adapters may change, as one rank holds it.

    ``kind`` is ``linear`` for the layers inside the model, ``head`` for the one that makes logits, ``embedding``
    for the table of token embeddings, a linear layer whose inputs are the vocabulary, one of them 1 at a time.

    ``in_features`` is the whole input size, ``in_shard`` this rank's piece. Where it is a piece only, the ranks'
    outputs are summed after the adapter was added, so a shrunk input need not be summed by itself; a bias must
    then be added by one rank alone, the one with ``adds_bias``.

    ``columns(start, stop)`` gives the base weight for these of the rank's inputs, [stop - start, width], however it
    is stored. It may be called when the model is loaded.
    """

    parts: tuple[LoraPart, ...]
    in_features: int
    in_shard: slice
    adds_bias: bool
    dtype: torch.dtype
    device: torch.device
    columns: Callable[[int, int], torch.Tensor]
    kind: Literal["linear", "head", "embedding"] = "linear"

    @property
    def width(self) -> int:
        """Outputs of all parts on this rank."""
        return sum(part.width for part in self.parts)


LoraLayer = Callable[["torch.Tensor", "torch.Tensor"], None]
"""``layer(x, out)`` lets the step's adapters change ``out`` [tokens, at least site.width] in place. ``x`` is the
layer's input, [tokens, local in_features], or for an embedding the token ids, int64 [tokens]; ``out`` is new,
without the layer's own bias, and not summed over ranks yet."""


class HostAdapter(Protocol):
    """An adapter in host memory, checked against the model. What else it holds is its backend's business."""

    @property
    def digest(self) -> str:
        """Identifies the contents: settings and tensors. Equal for equal adapters, wherever they lie."""
        ...

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        ...

    @property
    def nbytes(self) -> int:
        """Host memory that it takes."""
        ...


class LoraBackend(Protocol):
    """Reads adapters, keeps the slots, applies them. One for each rank."""

    slots: int
    """Adapters that fit the device; they are numbered from 1."""

    @property
    def reserved_bytes(self) -> int:
        """Device memory that the slots of all layers attached so far take, used or not."""
        ...

    @property
    def later_bytes(self) -> int:
        """Device memory that loading adapters may take beside the slots, at most."""
        ...

    def attach(self, site: LoraSite) -> LoraLayer:
        """Called once for each layer while the model is built, before any other method."""
        ...

    def read(self, path: str) -> HostAdapter:
        """Read and check an adapter folder. Called from a thread of its own while steps run; must not touch slots.

        Raises :class:`octavo.errors.NotFoundError` when there is no adapter at ``path`` and
        :class:`octavo.errors.CheckpointError`, naming file and tensor, when it does not fit.
        """
        ...

    def load(self, slot: int, adapter: HostAdapter) -> None:
        """Copy an adapter into a slot, over what was there. Ordered with the steps; must not synchronise."""
        ...

    def clear(self, slot: int) -> None:
        """The slot's adapter will not be used again."""
        ...

    def begin(self, slots: torch.Tensor, host: np.ndarray | None) -> None:
        """Which slot each token of the coming step uses: int64 [tokens], on the device and on the host.

        ``host`` is ``None`` while a graph is captured; only a backend whose record says ``graph_safe`` sees that.
        Before the first call every token uses the base model.
        """
        ...

    def begin_logits(self, host: np.ndarray) -> None:
        """Which slot each row of the coming logits uses: int64 [rows], for sites of the kind ``head``. Not called
        while a graph is captured."""
        ...

    def replays(self, slots: np.ndarray) -> bool:
        """Whether a captured step serves the adapters in these slots as well as one that runs as it is."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFacts:
    """What an executor answers about an adapter it has taken. ``nbytes`` is host memory, of one rank."""

    digest: str
    rank: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedAdapter:
    """An adapter that requests may name. A reload of other contents under the same name changes ``digest``."""

    name: str
    path: str
    digest: str
    rank: int
    nbytes: int
    pinned: bool = False


@runtime_checkable
class AdapterExecutor(Protocol):
    """What an :class:`octavo.contracts.executor.Executor` offers beside its steps where it can serve adapters.

    Its plans say which adapter goes into which slot, by key (``StepPlan.adapters``).
    """

    adapter_slots: int

    def add_adapter(self, key: int, path: str) -> AdapterFacts:
        """Read an adapter into host memory on every rank, under a number that is not in use. May be called from a
        thread of its own while steps run. Raises what :meth:`LoraBackend.read` raises; nothing is kept then."""
        ...

    def remove_adapter(self, key: int) -> None:
        """Drop an adapter from host memory; one that is not there is no error. A slot on the device keeps its
        copy. Before a plan puts it into another slot it is added again, under the same number."""
        ...
