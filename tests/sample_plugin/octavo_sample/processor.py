"""Logits processor `nudge`: bans tokens, or makes them more or less likely.

A request asks with ``SamplingParams(extra={"nudge": {"ban": [42], "boost": {7: 3.0}}})``. Nothing here depends on
tokens sampled before, so there is no state to keep but what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.errors import RequestError
from octavo.params import SamplingParams
from octavo_sample.options import NudgeOptions

if TYPE_CHECKING:
    import torch

NAME = "nudge"
_LARGEST = 100.0


class Nudge:
    """Implements :class:`octavo.contracts.sampling.LogitsProcessor`."""

    def __init__(self, vocab_size: int, options: NudgeOptions) -> None:
        self._vocab_size = vocab_size
        self._options = options
        self._always = self._ban_all(options.ban, "options.ban")
        self._biases: dict[int, dict[int, float]] = {}  # row, token
        self._prepared: tuple[list[int], torch.Tensor, torch.Tensor] | None = None

    def validate(self, params: SamplingParams) -> None:
        """Refuse what :meth:`admit` could not use."""
        self._asked(params)

    def admit(self, row: int, params: SamplingParams, prompt: list[int], output: list[int]) -> bool:
        """Remember what ``row`` asks for."""
        self._prepared = None
        self._biases[row] = self._asked(params) | self._always
        return bool(self._biases[row])

    def release(self, row: int) -> None:
        """Forget it."""
        self._prepared = None
        self._biases.pop(row, None)

    def apply(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Add all biases at once. The places are worked out anew only when the rows have changed."""
        if self._prepared is None or self._prepared[0] != rows:
            self._prepared = self._prepare(logits, rows)
        _, places, biases = self._prepared
        logits.view(-1).index_add_(0, places, biases)
        return logits

    def accept(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """Earlier tokens change nothing."""

    def _prepare(self, logits: torch.Tensor, rows: list[int]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        width = logits.shape[1]
        pairs = [
            (index * width + token, bias)
            for index, row in enumerate(rows)
            for token, bias in self._biases[row].items()
        ]
        places = logits.new_tensor([place for place, _ in pairs]).long()
        return [*rows], places, logits.new_tensor([bias for _, bias in pairs])

    def _asked(self, params: SamplingParams) -> dict[int, float]:
        asked = (params.extra or {}).get(NAME, {})
        if not isinstance(asked, Mapping) or not set(asked) <= {"ban", "boost"}:
            raise _wrong("should be like {'ban': [42], 'boost': {7: 3.0}}")
        boost = asked.get("boost", {})
        if not isinstance(boost, Mapping):
            raise _wrong("'boost' should map token ids to numbers")
        found = {self._token(token): _bias(token, bias) for token, bias in boost.items()}
        found |= self._ban_all(asked.get("ban", []), "'ban'")
        if len(found) > self._options.max_tokens:
            raise _wrong(f"names {len(found)} tokens; at most {self._options.max_tokens} are allowed")
        return found

    def _ban_all(self, tokens: Any, what: str) -> dict[int, float]:
        if not isinstance(tokens, (list, tuple)):
            raise _wrong(f"{what} should be a list of token ids")
        return {self._token(token): -math.inf for token in tokens}

    def _token(self, token: Any) -> int:
        token = int(token) if isinstance(token, str) and token.isdecimal() else token  # JSON's keys are text
        if type(token) is not int or not 0 <= token < self._vocab_size:
            raise _wrong(f"{token!r} is no token id; they are 0 to {self._vocab_size - 1}")
        return token


def _bias(token: Any, bias: Any) -> float:
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not abs(bias) <= _LARGEST:
        raise _wrong(
            f"the boost of token {token} should be a number from {-_LARGEST:g} to {_LARGEST:g}, not {bias!r}"
        )
    return float(bias)


def _wrong(what: str) -> RequestError:
    return RequestError(f"{NAME}: {what}.", param="extra")
