"""The logits-processor slot: custom changes to logits before sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from octavo.params import SamplingParams


class LogitsProcessor(Protocol):
    """Changes logits of the rows that asked for it. State is kept by row, reset at ``admit``."""

    def validate(self, params: SamplingParams) -> None:
        """Raise :class:`octavo.errors.RequestError` for bad options. Called at admission, off the step loop."""
        ...

    def admit(self, row: int, params: SamplingParams, prompt: list[int], output: list[int]) -> bool:
        """A request takes ``row``. True when this processor has something to do for it.

        ``output`` holds tokens generated before a preemption.
        """
        ...

    def release(self, row: int) -> None:
        """The row's request has gone."""
        ...

    def apply(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """``logits`` float32 [len(rows), vocab], only rows that ``admit`` accepted; may change them in place.

        Where tokens are drafted, a row of a processor that is safe under speculation may stand there several times.
        """
        ...

    def accept(self, rows: torch.Tensor, tokens: torch.Tensor) -> Any:
        """Tokens int64 [n] were sampled for ``rows`` int64 [n] (device tensors; reading them synchronises)."""
        ...
