"""The model-loading slot: checkpoint files into the weight slots of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from octavo.contracts.model import CausalLM
    from octavo.records import ModelProfile

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the tensor's name."""


class ModelLoader(Protocol):
    """Fills a model's weight slots."""

    def load(self, model: CausalLM, profile: ModelProfile, progress: Progress) -> None:
        """Copy every tensor into its slot, one at a time: no second full copy of the model exists.

        Raises :class:`octavo.errors.CheckpointError` naming file and tensor when a tensor is missing, unknown,
        truncated or of another shape than config.json says. Does not call ``model.finalize``.
        """
        ...
