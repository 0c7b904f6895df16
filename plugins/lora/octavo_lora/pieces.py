"""An adapter in host memory: what it does to each part of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """What an adapter does to one part of a site, as this rank holds it: ``out * gain + x down^T up + bias``.

    ``down`` [rank, local inputs], ``up`` [rank, local outputs] and ``bias`` [local outputs] are in the site's
    dtype; the adapter's scale is in ``up`` and ``bias``. ``gain`` float32 [local outputs] is DoRA's.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None
    gain: Tensor | None = None

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return int(self.down.shape[0])

    def tensors(self) -> Iterator[Tensor]:
        """All that there are."""
        yield from (tensor for tensor in (self.down, self.up, self.bias, self.gain) if tensor is not None)


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """A :class:`octavo.contracts.lora.HostAdapter`. ``pieces`` by site and part index; ``whole`` by site are
    weights in the place of the base model's, [vocabulary of this rank, hidden]."""

    digest: str
    rank: int
    nbytes: int
    pieces: Mapping[tuple[int, int], Piece]
    whole: Mapping[int, Tensor] = field(default_factory=dict)


def bytes_of(tensor: Tensor) -> int:
    """Memory of a tensor that has it for itself."""
    return tensor.numel() * tensor.element_size()
