"""The engine's own check of what a request brings to the sampler: an id out of range would end a GPU's process."""

from __future__ import annotations

from typing import Final

import numpy as np

from octavo.contracts.executor import RowStart
from octavo.errors import RequestError

MAX_BAD_WORD_TOKENS: Final = 1024


def check_ids(start: RowStart, vocab_size: int) -> None:
    """Refuse token ids that the logits do not have, and demands that no token can meet.

    Raises :class:`RequestError` naming the parameter.
    """
    start.params.check_vocabulary(vocab_size)
    if not 0 <= start.prompt_length <= len(start.tokens):
        raise RequestError(f"The prompt's length is {start.prompt_length} of {len(start.tokens)} tokens.")
    _check("The prompt", "prompt", start.tokens, vocab_size)
    words = start.bad_word_ids
    if sum(map(len, words)) > MAX_BAD_WORD_TOKENS:
        raise RequestError(f"bad_words may hold at most {MAX_BAD_WORD_TOKENS} tokens.", param="bad_words")
    _check("bad_words", "bad_words", [token for word in words for token in word], vocab_size)
    allowed = start.params.allowed_token_ids
    if start.params.min_tokens > 0 and allowed is not None and set(allowed) <= set(start.stop_ids):
        raise RequestError(
            "min_tokens bars the ids that end the request, and allowed_token_ids allows no others.",
            param="allowed_token_ids",
        )


def _check(what: str, param: str, tokens: list[int], vocab_size: int) -> None:
    if not tokens:
        return
    try:
        ids = np.array(tokens, np.int64)
    except (OverflowError, TypeError, ValueError):
        raise RequestError(f"{what} contains something that is no token id.", param=param) from None
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if len(bad):
        raise RequestError(
            f"{what} contains token id {bad[0]}; this model's ids are 0 to {vocab_size - 1}.", param=param
        )
