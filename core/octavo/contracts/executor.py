"""The executor slot: where the ranks of a model run; and the two messages that cross it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import msgspec

from octavo.params import SamplingParams

GUESSED: Final = -2
"""In a plan's draft: the token that the device has guessed at this place."""

if TYPE_CHECKING:
    import numpy as np


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A request takes a row. ``tokens`` are all known ones: the prompt and, after preemption, the outputs."""

    row: int
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    seed: int
    stop_ids: list[int]  # ids that end the request: barred until ``min_tokens``
    bad_word_ids: list[list[int]]
    adapter_slot: int = 0
    pooling: str = ""  # "last" or "mean": the row has no token sampled; its hidden states are pooled


class StepPlan(msgspec.Struct, array_like=True):
    """One step, as the scheduler decided it. Lists run over the step's rows, decodes (one token) first.

    A row with a draft computes its one missing token and the drafted ones behind it, and samples after each of
    them. The tokens of a draft are known to the host, or all of them are ``GUESSED``. After the step the device
    guesses ``guess`` tokens behind each row that samples; ``room`` says how many tokens each row's blocks hold.
    ``behind``: what the proposer has missed of a row, in steps after which nothing was guessed.
    """

    number: int
    ends: list[int]  # rows given back since the last plan; applied before ``starts``
    starts: list[RowStart]
    blocks: list[tuple[int, int, list[int]]]  # (row, index in its block table, block ids): additions
    rows: list[int]
    positions: list[int]  # first position that each row computes
    counts: list[int]  # tokens that each row computes
    samples: list[bool]  # whether a token is sampled after the row's last position; never where it pools
    adapters: list[tuple[int, int]] = []  # (slot, adapter key or 0 for none): slots change before the step
    drafts: dict[int, list[int]] = {}  # by index into ``rows``: tokens that may come after the known ones
    guess: int = 0
    room: list[int] = []  # in order of ``rows``; empty where nothing is guessed
    behind: dict[int, tuple[int, list[int]]] = {}  # by row: position of the first token, the tokens
    masked: list[int] = []  # indices of sampling rows that may need a mask: see :meth:`PendingStep.sample`

    @property
    def num_tokens(self) -> int:
        """Tokens in the whole step."""
        return sum(self.counts)


@dataclass(slots=True)
class RowLogprobs:
    """Log-probabilities for one position: the token's own, its rank (1 = most likely), and the top ones."""

    token: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(slots=True)
class StepResult:
    """What a step produced, in the order of its plan's rows.

    ``tokens`` int64 [rows]: the sampled token, -1 where none was asked for. ``accepted``, by index: where a draft
    was right, its tokens that come before the one in ``tokens``. ``failed``: rows (indices into the
    plan) whose logits were not finite, with the reason; their requests end, others go on. ``pooled``, by index:
    float32 [hidden_size], where a row that pools has computed the last token of its prompt. ``guessing_failed``:
    why the device will guess no more.
    """

    number: int
    tokens: np.ndarray
    logprobs: dict[int, list[RowLogprobs]]  # by index into the plan's rows; one for each new token
    prompt_logprobs: dict[int, list[RowLogprobs]]  # likewise: positions of this step's chunk, in order
    failed: dict[int, str]
    accepted: dict[int, list[int]] = field(default_factory=dict)
    pooled: dict[int, np.ndarray] = field(default_factory=dict)
    guessing_failed: str = ""


@dataclass(frozen=True, slots=True)
class Masks:
    """What may be sampled, for some rows of a step. ``rows`` ascend: indices into the plan's rows.

    ``bits`` int32 [n, width]: a packed mask (bit ``i % 32`` of word ``i // 32`` set: token ``i`` is allowed) for
    each of the rows, one for each position of a row with a draft. The width covers the vocabulary, or more.
    """

    rows: list[int]
    bits: np.ndarray


class PendingStep(Protocol):
    """A launched step."""

    def sample(self, masks: Masks | None) -> None:
        """Sample the step. Called once, before anything else is launched, where the plan has ``masked`` rows, and
        not otherwise: such a step is computed up to its logits, and waits. What a mask must allow follows from the
        last step's tokens, which the host reads while this one is computed. Rows without a mask may sample
        anything.
        """
        ...

    def result(self) -> StepResult:
        """Wait for the step and return what it produced."""
        ...


class Executor(Protocol):
    """Runs steps on all ranks. ``depth`` is how many steps may be in flight before a result is read."""

    depth: int
    num_blocks: int

    def launch(self, plan: StepPlan) -> PendingStep:
        """Start a step; returns without waiting for the device."""
        ...

    def stop(self) -> None:
        """Free everything."""
        ...


@runtime_checkable
class GuessingExecutor(Protocol):
    """What an :class:`Executor` offers beside its steps where it can run a device proposer."""

    longest_guess: int
    """Tokens that ``StepPlan.guess`` may ask for; 0 where the configuration names no device proposer."""
