"""The proposer slot: guesses of the tokens that come next. What becomes of a guess is the core's business.

There are two kinds. A :class:`Proposer` guesses on the host, between two steps, from tokens. A
:class:`DeviceProposer` guesses on the device, with layers of its own, right behind a step that has just been
sampled: nothing waits, and the host plans the next step meanwhile.

Verification is exact whatever is proposed: the core samples every position as it would without a draft, with the
same noise, and keeps drafted tokens while they equal what was sampled. A proposer can make an engine faster or
slower, and never change an answer; so it needs neither the model's probabilities nor its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from octavo.contracts.attention import StepBatch
    from octavo.contracts.model import CausalLM
    from octavo.records import Context, ModelProfile


@dataclass(frozen=True, slots=True)
class DraftRow:
    """A row that may have a draft: the tokens it got since its proposer last heard of it (perhaps none), and how
    many may be proposed, at least 1."""

    row: int
    fresh: Sequence[int]
    limit: int


@dataclass(frozen=True, slots=True)
class Draft:
    """``tokens`` int64 [rows, width] and ``lengths`` int64 [rows], in the order of the rows asked for.

    Of row i the first ``lengths[i]`` tokens count, from 0 (no idea) to its ``limit``; what follows is padding.
    """

    tokens: np.ndarray
    lengths: np.ndarray


class Proposer(Protocol):
    """Runs in the engine's thread, between two steps: its time is added to every step.

    A call that raises, a wrong shape or type, a length beyond the limit or a token id out of range switches the
    proposer off until the engine is started again; requests go on without it.
    """

    max_tokens: int
    """The longest draft that it will ever give, at least 1."""

    def reserve(self, row: int, tokens: Sequence[int]) -> None:
        """A request takes ``row``; ``tokens`` are all that are known of it, the prompt first."""
        ...

    def release(self, row: int) -> None:
        """The row's request has gone, or waits to begin anew."""
        ...

    def propose(self, rows: Sequence[DraftRow]) -> Draft:
        """Tokens that may follow those known of each of ``rows``. Never empty; no row stands in it twice."""
        ...


class DraftBody(Protocol):
    """Layers of a device proposer: loaded, with a KV cache that is addressed by the target's own block tables.

    A block that holds the target's keys and values of some tokens holds these layers' of the same tokens.
    """

    @property
    def profile(self) -> ModelProfile: ...
    @property
    def model(self) -> Any:
        """What was built: a :class:`octavo.contracts.model.CausalLM`, or what ``build`` returned."""
        ...

    @property
    def caches(self) -> Sequence[Tensor]:
        """One tensor for each of the model's attention layers. There once the engine is built."""
        ...

    def plan(self, batch: StepBatch) -> Any:
        """The attention plan of ``batch`` for these layers."""
        ...


class DraftKit(Protocol):
    """What a device proposer is built with, inside an executor. ``model`` is the target."""

    @property
    def context(self) -> Context: ...
    @property
    def model(self) -> CausalLM: ...

    def body(
        self,
        path: str,
        *,
        loader: str = "auto",
        dtype: str = "auto",
        quantization: str = "auto",
        build: Callable[[Context, Any], Any] | None = None,
        described: bool = True,
    ) -> DraftBody:
        """Load the checkpoint at ``path``, with a loader, a type and a scheme of its own.

        ``build(ctx, parts)`` makes an object with ``attention_layers``, ``slots``, ``finalize`` and
        ``ignored_weights`` of a :class:`octavo.contracts.model.CausalLM`; by default the architecture that the
        checkpoint names is built. A folder that is not ``described`` by a config.json of its own has the target's
        facts. Raises what loading a model raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class Computed:
    """What the target has just computed. Tensors are on the device.

    ``next_ids``: the token that follows each of ``token_ids`` [tokens], known or just sampled; behind a wrong guess
    it means nothing. ``hidden`` [tokens, hidden_size]: the target's final states, normed. ``taps``: the states
    after each of the proposer's ``tap_layers``. ``prompts``: the step computes more than decodes and guesses.
    """

    token_ids: Tensor
    next_ids: Tensor
    batch: StepBatch
    hidden: Tensor
    taps: Sequence[Tensor]
    prompts: bool


class Ends(Protocol):
    """The ends of n rows, behind which tokens are guessed. Nothing here may be read on the host."""

    @property
    def positions(self) -> Tensor:
        """Position of each row's newest token, the one just sampled: int64 [n]."""
        ...

    @property
    def tokens(self) -> Tensor:
        """The last two tokens of each row, the newest last: int64 [n, 2]."""
        ...

    @property
    def carried(self) -> Tensor | None:
        """What ``feed`` returned, at the last right token before the newest: [n, …]."""
        ...

    def batch(self, first: Tensor, queries: int = 1) -> StepBatch:
        """Where ``queries`` tokens a row stand, from position ``first`` int64 [n] on: row by row, side by side."""
        ...

    def pick(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Tokens int64 [n] for ``positions`` int64 [n] from ``logits`` float32 [n, vocab], chosen as the core does:
        the highest, or drawn with the request's own temperature and noise. A draft that is drawn
        with the target's noise is right far more often than one drawn with any other."""
        ...


class DeviceProposer(Protocol):
    """Runs in the executor. A call that raises, or answers with a wrong shape, type or token, switches it off.

    On a GPU both methods must queue work and never wait for it; ``propose`` is captured in CUDA graphs where the
    attention backend can be, and then sees the same tensors again and again.
    """

    max_tokens: int
    """The longest draft, at least 1."""

    tap_layers: Sequence[int]
    """Target layers whose output states it wants, counted from 0; usually none."""

    carried_like: Tensor | None
    """Shape [any, …], type and device of what ``feed`` returns."""

    def feed(self, computed: Computed) -> Tensor | None:
        """Take in a step of the target. Not called for steps of decodes behind which nothing will be guessed.

        Returns a state for each token, of which ``propose`` gets those at the ends of rows; or nothing.
        """
        ...

    def catch_up(self, token_ids: Tensor, batch: StepBatch) -> None:
        """Tokens that the target computed in steps that were not fed. May do nothing where states are needed."""
        ...

    def propose(self, ends: Ends, count: int) -> Tensor:
        """``count`` tokens that may follow the newest of each row, int64 [n, count], 1 to ``max_tokens``."""
        ...
