"""Embeddings on the caller's side: which pooling, how many dimensions, and the vector from what the engine sent."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

import numpy as np

from octavo.contracts.api import POOLINGS, Embedding
from octavo.engine.answers import Answers
from octavo.errors import EngineDeadError, RequestError, nearest
from octavo.params import SamplingParams
from octavo.records import ModelProfile

NOTHING_SAMPLED: Final = SamplingParams(max_tokens=1, detokenize=False)
"""Parameters of a request that only pools."""

_log = logging.getLogger("octavo.engine")


def checkpoint_pooling(profile: ModelProfile) -> str:
    """The pooling that a sentence-transformers checkpoint declares in ``1_Pooling/config.json``, else ``last``."""
    path = Path(profile.path).expanduser() / "1_Pooling" / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "last"
    if isinstance(found, dict) and found.get("pooling_mode_mean_tokens") is True:
        return "mean"
    if not (isinstance(found, dict) and found.get("pooling_mode_lasttoken") is True):
        _log.warning("%s asks for a pooling that Octavo does not have; it takes the last token's state.", path)
    return "last"


def check_pooling(wanted: str | None, default: str) -> str:
    """``wanted``, or ``default``. Raises :class:`RequestError`."""
    if wanted is None:
        return default
    if wanted not in POOLINGS:
        raise RequestError(
            f"pooling must be {' or '.join(POOLINGS)}, not {wanted!r:.60}.{nearest(f'{wanted:.60}', POOLINGS)}",
            param="pooling",
        )
    return wanted


def check_dimensions(wanted: int | None, size: int) -> None:
    """Raise :class:`RequestError` for a number of dimensions that the model does not have."""
    if wanted is not None and (type(wanted) is not int or not 1 <= wanted <= size):
        raise RequestError(f"dimensions must be between 1 and {size}, not {wanted!r:.40}.", param="dimensions")


def finish(answers: Answers, dimensions: int | None, normalize: bool) -> Embedding:
    """The embedding of a request that has ended."""
    if not answers.pooled:
        raise EngineDeadError("the engine ended a request for an embedding without one.")
    values = np.frombuffer(answers.pooled, "<f4")[:dimensions]
    if normalize:
        length = float(np.linalg.norm(values))
        values = values / np.float32(length) if length else values
    return Embedding(values, len(answers.prompt.token_ids), answers.prompt.cached_tokens)
