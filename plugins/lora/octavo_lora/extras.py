"""Adapters of the embedding and of the output head, and whole weights in their place: plain torch on any device.

Few adapters have them, and over a large vocabulary they are large, so that device memory is taken when one is
loaded and not set aside in every slot. Steps with such adapters are not replayed from captured graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from octavo.contracts.lora import LoraSite
from octavo_lora.groups import Group
from octavo_lora.pieces import Piece


@dataclass(frozen=True, slots=True)
class _Loaded:
    piece: Piece | None
    whole: Tensor | None


class ExtraLayer:
    """The adapters of one embedding or head; a :data:`octavo.contracts.lora.LoraLayer`. ``groups`` are the rows of
    the coming call."""

    def __init__(self, site: LoraSite) -> None:
        self.site = site
        self.groups: Sequence[Group] = ()
        self.loaded: dict[int, _Loaded] = {}

    def load(self, slot: int, piece: Piece | None, whole: Tensor | None) -> None:
        """Put what an adapter has for this layer into a slot, if anything."""
        self.loaded.pop(slot, None)
        if piece is not None or whole is not None:
            self.loaded[slot] = _Loaded(None if piece is None else self._piece(piece), self._sent(whole))

    def __call__(self, x: Tensor, out: Tensor) -> None:
        width = self.site.width
        for group in self.groups:
            rows = x if group.index is None else x.index_select(0, group.index)
            before = out[:, :width] if group.index is None else out[group.index, :width]
            after = self._changed(self.loaded[group.slot], rows, before)
            if group.index is None:
                out[:, :width] = after
            else:
                out[group.index, :width] = after

    def _changed(self, loaded: _Loaded, rows: Tensor, out: Tensor) -> Tensor:
        if loaded.whole is not None:
            # An embedding's weight is [inputs, outputs], a head's [outputs, inputs].
            out = self._times(rows, loaded.whole if self.site.kind == "embedding" else loaded.whole.T)
        if loaded.piece is None:
            return out
        piece = loaded.piece
        change = self._times(rows, piece.down.T) @ piece.up
        if piece.bias is not None:
            change += piece.bias
        return change + (out if piece.gain is None else (out * piece.gain).to(out.dtype))

    def _times(self, rows: Tensor, weight: Tensor) -> Tensor:
        """``rows`` times ``weight`` [local inputs, outputs]; an embedding's rows are token ids."""
        if self.site.kind != "embedding":
            return rows @ weight
        shard = self.site.in_shard
        if shard == slice(0, self.site.in_features):
            return F.embedding(rows, weight)
        local = rows - shard.start
        outside = (local < 0) | (rows >= shard.stop)
        return F.embedding(local.masked_fill(outside, 0), weight).masked_fill_(outside.unsqueeze(-1), 0)

    def _piece(self, piece: Piece) -> Piece:
        return Piece(
            piece.down.to(self.site.device, non_blocking=True),
            piece.up.to(self.site.device, non_blocking=True),
            self._sent(piece.bias),
            self._sent(piece.gain),
        )

    def _sent(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.site.device, non_blocking=True)
