"""The architecture slot: a decoder built from the core's layers, and how the loader reaches its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from octavo.contracts.attention import AttentionSpec, StepBatch

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class WeightSlot:
    """Where one checkpoint tensor goes.

    ``source`` is its name in the checkpoint, ``shape`` its whole shape there. The loader reads
    ``tensor[shard]`` and copies it into ``target``, a view of a parameter of the same shape as that slice.
    ``exact``: the stored dtype must equal the target's (packed integers).
    ``begin`` is called before the copy, and may replace a ``target`` that has no memory yet (device ``meta``);
    ``end`` after it. Loaders use :func:`filled`. ``kept``: see :class:`octavo.contracts.linear.ParamSpec`.
    """

    source: str
    shape: tuple[int, ...]
    shard: tuple[slice, ...]
    target: torch.Tensor
    optional: bool = False
    exact: bool = False
    loaded: bool = False
    kept: float = 1.0
    begin: Callable[[], None] | None = None
    end: Callable[[], None] | None = None


@contextmanager
def filled(slot: WeightSlot) -> Iterator[None]:
    """Around the copy into ``slot.target``: makes its memory where it has none, and says that it is loaded."""
    if slot.begin is not None:
        slot.begin()
    yield
    slot.loaded = True
    if slot.end is not None:
        slot.end()


class CausalLM(Protocol):
    """A decoder-only language model, already divided for this rank."""

    attention_layers: Sequence[AttentionSpec]
    ignored_weights: Sequence[str]
    """Regular expressions of checkpoint tensors that this architecture knows and does not need."""

    def slots(self) -> list[WeightSlot]:
        """One slot for each checkpoint tensor that the model takes."""
        ...

    def finalize(self) -> None:
        """Called once when all weights are in: repack, free what is not needed."""
        ...

    def forward(
        self, token_ids: torch.Tensor, batch: StepBatch, plan: Any, caches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """``token_ids`` int64 [tokens] to final hidden states [tokens, hidden_size], normed."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden_size] to float32 logits [rows, vocab_size] (gathered over ranks)."""
        ...


@runtime_checkable
class TappedLM(Protocol):
    """What a :class:`CausalLM` offers beside, where proposers may look inside it."""

    def forward_tapped(
        self,
        token_ids: torch.Tensor,
        batch: StepBatch,
        plan: Any,
        caches: Sequence[torch.Tensor],
        layers: Sequence[int],
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """As ``forward``, and the residual stream behind each of ``layers`` (0 is the first): what the next layer
        takes in, [tokens, hidden_size], before any norm."""
        ...

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids int64 [tokens] to what the first layer takes in, [tokens, hidden_size]."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See :meth:`CausalLM.logits`."""
        ...
