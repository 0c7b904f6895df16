"""The executor slot: where the ranks of a model run; and the two messages that cross it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from octavo.params import SamplingParams

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

    A row with a draft computes its one missing token and the drafted ones behind it, all known to the host, and
    samples after each of them.
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
    float32 [hidden_size], where a row that pools has computed the last token of its prompt.
    """

    number: int
    tokens: np.ndarray
    logprobs: dict[int, list[RowLogprobs]]  # by index into the plan's rows; one for each new token
    prompt_logprobs: dict[int, list[RowLogprobs]]  # likewise: positions of this step's chunk, in order
    failed: dict[int, str]
    accepted: dict[int, list[int]] = field(default_factory=dict)
    pooled: dict[int, np.ndarray] = field(default_factory=dict)


class PendingStep(Protocol):
    """A launched step."""

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
