"""Logits processors of plugins: each gets the rows that asked for it. One that fails costs only those rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from octavo.contracts.executor import RowStart
from octavo.contracts.sampling import LogitsProcessor
from octavo.run.sampler.rows import IntArray, Layout, RowFlags, Subset

_log = logging.getLogger(__name__)


class Processors:
    """All of an engine's processors, in order, with the rows of each."""

    def __init__(self, processors: Sequence[LogitsProcessor], max_rows: int) -> None:
        self._processors = [(processor, RowFlags(max_rows)) for processor in processors]
        self._failed: dict[int, str] = {}

    def admit(self, start: RowStart) -> None:
        self._failed.pop(start.row, None)
        for processor, flags in self._processors:
            prompt, output = start.tokens[: start.prompt_length], start.tokens[start.prompt_length :]
            try:
                wanted = processor.admit(start.row, start.params, prompt, output)
            except Exception as error:
                wanted = False
                self._fail(processor, [start.row], error)
            flags.set(start.row, bool(wanted))

    @property
    def active(self) -> bool:
        return any(flags.any for _, flags in self._processors)

    def release(self, row: int) -> None:
        self._failed.pop(row, None)
        for processor, flags in self._processors:
            flags.set(row, False)
            try:
                processor.release(row)
            except Exception:
                _log.exception("Logits processor %s failed to release row %d.", _name(processor), row)

    def apply(self, logits: torch.Tensor, layout: Layout, positions: IntArray) -> bool:
        changed = False
        for processor, flags in self._processors:
            subset = flags.select(layout)
            if subset is None:
                continue
            changed = True
            try:
                _apply(processor, logits, subset)
            except Exception as error:
                self._fail(processor, subset.rows.tolist(), error)
        return changed

    def accept(self, layout: Layout, tokens: torch.Tensor) -> None:
        for processor, flags in self._processors:
            subset = flags.select(layout)
            if subset is None:
                continue
            try:
                processor.accept(subset.device_rows, subset.take(tokens))
            except Exception as error:
                self._fail(processor, subset.rows.tolist(), error)

    def failures(self, layout: Layout) -> dict[int, str]:
        """By place in the batch: why a row's request cannot go on."""
        if not self._failed:
            return {}
        rows = layout.rows.tolist()
        return {index: self._failed[row] for index, row in enumerate(rows) if row in self._failed}

    def _fail(self, processor: LogitsProcessor, rows: list[int], error: Exception) -> None:
        reason = f"Logits processor {_name(processor)} failed: {type(error).__name__}: {error}"
        if any(row not in self._failed for row in rows):
            _log.error(reason, exc_info=error)
        for row in rows:
            self._failed.setdefault(row, reason)


def _apply(processor: LogitsProcessor, logits: torch.Tensor, subset: Subset) -> None:
    part = subset.take(logits)
    result = processor.apply(part, subset.rows.tolist())
    if result.shape != part.shape or result.dtype != part.dtype:
        raise ValueError(
            f"apply returned {result.dtype} {list(result.shape)}; it was given {part.dtype} {list(part.shape)}."
        )
    subset.put(logits, result)


def _name(processor: LogitsProcessor) -> str:
    return f"{type(processor).__module__}.{type(processor).__qualname__}"
