"""What a feature of the sampler is. State is kept by row: ``admit`` resets it, ``release`` drops it."""

from __future__ import annotations

from typing import Protocol

import torch

from octavo.contracts.executor import RowStart
from octavo.run.sampler.rows import IntArray, Layout


class Feature(Protocol):
    """Anything that keeps something about rows."""

    def admit(self, start: RowStart) -> None: ...

    def release(self, row: int) -> None: ...


class Modifier(Feature, Protocol):
    """Changes the logits of all rows that ask for it, greedy ones too."""

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        """Change ``logits`` float32 [n, vocab] in place. False where no row needed anything."""
        ...


class Remembering(Modifier, Protocol):
    """A modifier whose state follows the tokens sampled."""

    @property
    def active(self) -> bool:
        """Whether a row asks for it; it then looks at the tokens of drafts."""
        ...

    def accept(self, layout: Layout, tokens: torch.Tensor) -> None:
        """``tokens`` int64 [n] were sampled for the batch's rows."""
        ...


class Truncation(Feature, Protocol):
    """Drops improbable tokens of rows that are not greedy."""

    def wanted(self, layout: Layout) -> bool:
        """Whether a row of the batch asks for it."""
        ...

    def apply(self, scaled: torch.Tensor, layout: Layout) -> None:
        """Set dropped tokens of ``scaled``, logits over temperature, float32 [n, vocab], to -inf in place."""
        ...
