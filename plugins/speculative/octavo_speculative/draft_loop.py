"""The draft model's loop: one pass over each row's last two tokens, then one token after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.proposer import Computed, DraftBody, Ends
from octavo.errors import ConfigError
from octavo.records import ModelProfile

_PADDING = 1024
"""Vocabularies of one family may be padded to different sizes."""


class DraftModel:
    """A :class:`octavo.contracts.proposer.DeviceProposer`.

    Prompts run through the draft in the steps in which the target computes them. In a guess it has computed all but
    the last of the tokens that it proposed; so the next begins one token before the newest, which it computes again
    where it had been right already.
    """

    tap_layers: Sequence[int] = ()
    carried_like: Tensor | None = None

    def __init__(self, body: DraftBody, target: ModelProfile, max_tokens: int) -> None:
        draft = body.profile
        if abs(draft.vocab_size - target.vocab_size) > _PADDING:
            raise ConfigError(
                f"{draft.path} has {draft.vocab_size} tokens, {target.path} {target.vocab_size}: a draft model "
                "must have the same vocabulary.",
                "speculation.options.model",
            )
        self.max_tokens = max_tokens
        self._body, self._last_token = body, draft.vocab_size - 1

    def feed(self, computed: Computed) -> None:
        """Steps without prompts bring nothing that a guess does not compute itself."""
        if computed.prompts:
            self._forward(computed.token_ids, computed.batch)

    def catch_up(self, token_ids: Tensor, batch: StepBatch) -> None:
        self._forward(token_ids, batch)

    def propose(self, ends: Ends, count: int) -> Tensor:
        hidden = self._forward(ends.tokens.view(-1), ends.batch(ends.positions - 1, queries=2))
        guesses = [self._pick(ends, hidden[1::2], 1)]
        for ahead in range(1, count):
            hidden = self._forward(guesses[-1], ends.batch(ends.positions + ahead))
            guesses.append(self._pick(ends, hidden, ahead + 1))
        return torch.stack(guesses, dim=1)

    def _pick(self, ends: Ends, hidden: Tensor, ahead: int) -> Tensor:
        return ends.pick(self._body.model.logits(hidden), ends.positions + ahead)

    def _forward(self, token_ids: Tensor, batch: StepBatch) -> Tensor:
        body = self._body
        known = token_ids.clamp_max(self._last_token)
        hidden: Tensor = body.model.forward(known, batch, body.plan(batch), body.caches)
        return hidden
