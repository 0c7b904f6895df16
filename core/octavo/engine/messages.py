"""What the API process and the engine process say to each other.

Everything is plain data: msgspec encodes it as msgpack, and decoding checks each type. Ids are numbers that
the API process hands out; whatever a client calls its request never gets here.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from octavo.contracts.api import EngineStats
from octavo.contracts.lora import ServedAdapter
from octavo.engine.failures import Failure
from octavo.params import SamplingParams
from octavo.records import Context

SEED_MASK: Final = (1 << 63) - 1
"""Seeds are 63 bits, so that they fit a signed integer of any language."""


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """One request for ``params.n`` answers, whose ids are ``id``, ``id + 1`` and so on.

    ``seed`` is always given; answer ``i`` draws from ``seed + i``. ``arrival`` is in seconds of the monotonic
    clock. ``stop_ids`` are the ids that end the answer; ``eos_ids`` are those of them that mean end of text.
    ``pooling`` ("last" or "mean"): no tokens are wanted, but the prompt's hidden states, pooled.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    stop_ids: list[int]
    eos_ids: list[int]
    bad_word_ids: list[list[int]]
    seed: int
    max_tokens: int
    priority: int
    arrival: float
    adapter: str | None
    cache_salt: str | None
    pooling: str = ""


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Forget these answers. Unknown ids are fine: they may have finished a moment ago."""

    ids: list[int]


class ResetPrefixCache(msgspec.Struct, frozen=True, array_like=True, tag="reset_prefix_cache"):
    """Forget cached blocks that no request uses."""


class LoadAdapter(msgspec.Struct, frozen=True, array_like=True, tag="load_adapter"):
    """Serve the adapter at ``path`` under ``name``, in place of one of that name. Answered by ``ticket``."""

    ticket: int
    name: str
    path: str
    pinned: bool


class UnloadAdapter(msgspec.Struct, frozen=True, array_like=True, tag="unload_adapter"):
    """Take no more requests for an adapter. Answered by ``ticket`` when the last of them has ended."""

    ticket: int
    name: str


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """End the engine now; what still runs is dropped."""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities of one position: the token's own, its rank from 1, and the likeliest ones."""

    token: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class Output(msgspec.Struct, array_like=True):
    """What one step added to one answer.

    ``prompt_scores`` continue those that came before; they begin with the prompt's second token, for nothing
    precedes the first. ``cached_tokens`` and ``scheduled_at`` come with the first tokens. ``error`` is set
    when the engine ended the request on a failure. ``pooled`` is float32 [hidden_size], little-endian. Of
    ``drafted`` guesses that the step verified ``accepted`` were right.
    """

    id: int
    token_ids: list[int]
    scores: list[TokenScore] | None = None
    prompt_scores: list[TokenScore] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    error: str | None = None
    cached_tokens: int = 0
    scheduled_at: float | None = None
    pooled: bytes | None = None
    drafted: int = 0
    accepted: int = 0


class Outputs(msgspec.Struct, array_like=True, tag="outputs"):
    """All outputs of one step."""

    outputs: list[Output]


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """The loop is alive, and these are its figures."""

    stats: EngineStats


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag="rejected"):
    """The engine refused the request with this first id; none of its answers ran."""

    id: int
    failure: Failure


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The engine is built. ``max_length`` is what the cache really holds; ``processors`` are the names of the
    logits processors that take options; ``uses_priority`` is the scheduling policy's. ``structured_off``: why
    answers can't be held to a grammar here; empty where they can."""

    context: Context
    num_blocks: int
    max_length: int
    max_queue: int
    processors: list[str]
    uses_priority: bool = False
    adapters: list[ServedAdapter] | None = None  # None: this engine takes none
    structured_off: str = ""


class AdapterReply(msgspec.Struct, frozen=True, array_like=True, tag="adapter_reply"):
    """What became of a request to load or unload an adapter: ``served`` after loading, ``failure`` if it failed."""

    ticket: int
    name: str
    served: ServedAdapter | None
    failure: Failure | None


class Fatal(msgspec.Struct, frozen=True, array_like=True, tag="fatal"):
    """The engine has ended, or never started."""

    failure: Failure


ToEngine: TypeAlias = Submit | Abort | ResetPrefixCache | LoadAdapter | UnloadAdapter | Stop
FromEngine: TypeAlias = Outputs | Beat | Rejected | AdapterReply | Ready | Fatal
