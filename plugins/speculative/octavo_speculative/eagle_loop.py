"""How an EAGLE head is fed and asked: every step of the target first, then one token after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.contracts.attention import StepBatch
from octavo.contracts.model import TappedLM
from octavo.contracts.proposer import Computed, DraftBody, DraftKit, Ends
from octavo.errors import CheckpointError, ConfigError
from octavo.records import Context
from octavo_speculative.eagle_head import EagleHead, Spelling
from octavo_speculative.stored import stored_shapes


class Eagle:
    """A :class:`octavo.contracts.proposer.DeviceProposer`.

    The state of the token at position i and the token at i + 1 stand together at position i, where the head's keys
    and values are kept as well.
    """

    def __init__(self, body: DraftBody, target: TappedLM, vocab_size: int, taps: Sequence[int], most: int) -> None:
        head: EagleHead = body.model
        self.max_tokens, self.tap_layers = most, taps
        self.carried_like: Tensor | None = torch.empty(0, head.hidden, dtype=head.dtype, device=head.fc.spec.device)
        self._body, self._head, self._target, self._vocab_size = body, head, target, vocab_size
        self._embed: Callable[[Tensor], Tensor] = head.embedding or target.embed
        self._ids = None if head.d2t is None else torch.arange(len(head.d2t), device=head.d2t.device)

    def feed(self, computed: Computed) -> Tensor:
        head = self._head
        if self.tap_layers:
            state = head.fc(torch.cat(list(computed.taps), dim=1))
        else:
            state = computed.hidden
        return self._step(computed.next_ids, state, computed.batch)

    def catch_up(self, token_ids: Tensor, batch: StepBatch) -> None:
        """The target's states are gone: what was missed stays missed."""

    def propose(self, ends: Ends, count: int) -> Tensor:
        state = ends.carried
        assert state is not None
        guesses = [ends.pick(self._logits(state), ends.positions + 1)]
        for ahead in range(1, count):
            state = self._step(guesses[-1], state, ends.batch(ends.positions + ahead - 1))
            guesses.append(ends.pick(self._logits(state), ends.positions + ahead + 1))
        return torch.stack(guesses, dim=1)

    def _step(self, token_ids: Tensor, state: Tensor, batch: StepBatch) -> Tensor:
        body = self._body
        return self._head.layer(self._embed(token_ids), state, batch, body.plan(batch), body.caches[0])

    def _logits(self, state: Tensor) -> Tensor:
        """Over the target's vocabulary: float32 [rows, vocab]."""
        head = self._head
        if head.spelling.states == 3:
            state = head.norm(state)
        if head.head is None:
            return self._target.logits(state)
        logits: Tensor = head.head(state)
        if head.d2t is None or self._ids is None:
            return logits
        whole = logits.new_full((len(logits), self._vocab_size), -torch.inf)
        return whole.index_copy_(1, self._ids + head.d2t, logits)


def build_eagle(kit: DraftKit, path: str, most: int) -> Eagle:
    """Load the head at ``path``. Raises :class:`CheckpointError` or :class:`ConfigError` where it doesn't fit."""
    target, profile = kit.model, kit.context.model
    if not isinstance(target, TappedLM):
        raise ConfigError(
            f"{profile.architecture!r} does not show its hidden states, which EAGLE needs.", "speculation"
        )
    spelling = Spelling.of(stored_shapes(path), path)

    def build(ctx: Context, parts: Any) -> EagleHead:
        return EagleHead(ctx, parts, spelling, profile)

    body = kit.body(path, dtype=kit.context.dtype, quantization="none", build=build)
    draft = body.profile
    shared = spelling.states == 1 or not (spelling.own_embedding and spelling.own_head)
    if shared and draft.hidden_size != profile.hidden_size:
        raise CheckpointError(
            f"{path}: its states have {draft.hidden_size} values and {profile.path}'s {profile.hidden_size}, whose "
            "embedding or output layer it would share."
        )
    if spelling.states == 1:
        return Eagle(body, target, profile.vocab_size, (), most)
    depth = profile.num_layers
    ids = draft.config.get("eagle_aux_hidden_state_layer_ids") or (2, depth // 2, depth - 3)
    if len(ids) != 3 or not all(isinstance(at, int) and 1 <= at <= depth for at in ids):
        raise CheckpointError(
            f"{path}/config.json: eagle_aux_hidden_state_layer_ids must be three numbers from 1 to {depth}, "
            f"not {ids}."
        )
    # The checkpoint counts the layer that takes the state in; a tap the one that it comes out of.
    return Eagle(body, target, profile.vocab_size, [at - 1 for at in ids], most)
