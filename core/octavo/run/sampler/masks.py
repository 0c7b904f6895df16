"""Masks of structured outputs: what they bar is gone before anything else looks at the logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from octavo.contracts.executor import Masks
from octavo.run.sampler.rows import IntArray, upload


def apply_masks(
    logits: torch.Tensor, index: IntArray, masks: Masks, mask_logits: Callable[..., None], device: torch.device
) -> None:
    """Bar tokens of ``logits`` float32 [n, vocab] in place. ``index`` int64 [n]: the plan's row of each position.

    Raises :class:`ValueError` where masks and positions don't match, or don't cover the vocabulary.
    """
    where = np.flatnonzero(np.isin(index, masks.rows))
    if len(where) != len(masks.bits) or masks.bits.shape[1] * 32 < logits.shape[1]:
        raise ValueError(f"Masks {list(masks.bits.shape)} for {len(where)} positions of {logits.shape[1]} logits.")
    width = -(-logits.shape[1] // 32)
    mask_logits(logits, upload(where, device), upload(masks.bits[:, :width], device))
