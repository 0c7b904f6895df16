"""From what a caller asks to what the engine is told: everything about a request is checked here, first.

Belongs to the API process. The engine checks again what could harm it (:mod:`octavo.engine.core`).
"""

from __future__ import annotations

import operator
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from octavo.config.schema import StructuredLimits
from octavo.contracts.api import Arrival
from octavo.engine.messages import SEED_MASK, Submit
from octavo.errors import NotFoundError, RequestError, nearest
from octavo.params import SamplingParams
from octavo.structured import no_structured_outputs

MAX_STOP_LENGTH: Final = 1024
MAX_BAD_WORD_LENGTH: Final = 256
MAX_SALT_LENGTH: Final = 256
_PRIORITY_LIMIT: Final = 2**31


class Encoder(Protocol):
    """The part of a tokenizer that admission needs."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What bounds a request. ``longest_token`` is in characters; ``processors`` are the logits processors that
    take options by name. ``structured_off`` says why answers can't be held to a grammar, if they can't."""

    max_length: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    longest_token: int
    processors: Collection[str] = ()
    structured: StructuredLimits = field(default_factory=StructuredLimits)
    structured_off: str = ""


SelectAdapter = Callable[[Arrival, Sequence[str]], str | None]


class Admission:
    """Turns requests into :class:`Submit` messages, or raises :class:`RequestError` naming the field."""

    def __init__(
        self,
        tokenizer: Encoder,
        limits: Limits,
        *,
        seed: int,
        select_adapter: SelectAdapter | None = None,
        adapters: Collection[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._seeds = random.Random(seed)
        self._select_adapter = select_adapter
        self._adapters = adapters  # a live view: they come and go

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokenise; text that can't fit is refused before the tokenizer sees it."""
        if not isinstance(text, str):
            raise RequestError(f"the prompt must be text, not {type(text).__name__}.", param="prompt")
        longest = self._limits.max_length * self._limits.longest_token
        if len(text) > longest:
            raise RequestError(
                f"the prompt has {len(text)} characters; this model's maximum context length is "
                f"{self._limits.max_length} tokens, at most {longest} characters.",
                param="prompt",
                code="context_length_exceeded",
            )
        _check_unicode(text, "prompt")
        return self._tokenizer.encode(text, add_special_tokens)

    def prompt_ids(self, prompt: str | Sequence[int], add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, checked."""
        if isinstance(prompt, str):
            ids = self.encode(prompt, add_special_tokens)
        else:
            ids = check_token_ids(prompt, self._limits.vocab_size, "prompt")
        check_prompt_length(len(ids), self._limits.max_length)
        return ids

    def prepare(
        self, prompt: str | Sequence[int], params: SamplingParams, add_special_tokens: bool = True
    ) -> tuple[list[int], list[list[int]]]:
        """The slow part of admission, all tokenising: prompt ids and bad-word ids for ``submit``."""
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params must be SamplingParams, not {type(params).__name__}.", param="params")
        return self.prompt_ids(prompt, add_special_tokens), self.bad_word_ids(params)

    def bad_word_ids(self, params: SamplingParams) -> list[list[int]]:
        """Each bad word as the ids it has at the beginning of a text, and those it has behind a space."""
        found: dict[tuple[int, ...], None] = {}
        for word in params.bad_words:
            if len(word) > MAX_BAD_WORD_LENGTH:
                raise RequestError(
                    f"a bad word may have at most {MAX_BAD_WORD_LENGTH} characters, not {len(word)}.",
                    param="bad_words",
                )
            _check_unicode(word, "bad_words")
            bare = word.lstrip() or word
            for text in (bare, f" {bare}"):
                ids = tuple(self._tokenizer.encode(text, False))
                if ids:
                    found[ids] = None
        return [list(ids) for ids in found]

    def submit(
        self,
        first_id: int,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        bad_word_ids: list[list[int]],
        priority: int = 0,
        adapter: str | None = None,
        cache_salt: str | None = None,
        arrival: Arrival | None = None,
        pooling: str = "",
    ) -> Submit:
        """The message for ``params.n`` answers with ids from ``first_id`` on. Quick: no tokenising."""
        self._check_params(params)
        _check_labels(priority, cache_salt)
        max_tokens = resolve_max_tokens(params, len(prompt_ids), self._limits.max_length)
        if params.top_k > self._limits.vocab_size:  # all tokens, and maybe beyond 64 bits
            params = msgspec.structs.replace(params, top_k=0)
        eos_ids = () if params.ignore_eos else self._limits.eos_ids
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        return Submit(
            id=first_id,
            prompt_ids=prompt_ids,
            params=params,
            stop_ids=list(dict.fromkeys((*eos_ids, *params.stop_token_ids))),
            eos_ids=list(eos_ids),
            bad_word_ids=bad_word_ids,
            seed=seed & SEED_MASK,
            max_tokens=max_tokens,
            priority=priority,
            arrival=time.monotonic(),
            adapter=self._adapter(adapter, arrival or Arrival(adapter, len(prompt_ids), {})),
            cache_salt=cache_salt,
            pooling=pooling,
        )

    def _check_params(self, params: SamplingParams) -> None:
        params.check_vocabulary(self._limits.vocab_size)
        for stop in params.stop:
            _check_unicode(stop, "stop")
            if len(stop) > MAX_STOP_LENGTH:
                raise RequestError(
                    f"a stop string may have at most {MAX_STOP_LENGTH} characters, not {len(stop)}.", param="stop"
                )
        if params.structured_outputs is not None:
            if self._limits.structured_off:
                raise no_structured_outputs(self._limits.structured_off)
            limits = self._limits.structured
            params.structured_outputs.check_limits(limits.max_bytes, limits.max_depth)
        for name in params.extra or ():
            if name not in self._limits.processors:
                raise RequestError(
                    f"no logits processor {name!r} is active here.{nearest(name, self._limits.processors)}",
                    param="extra",
                )

    def _adapter(self, wanted: str | None, arrival: Arrival) -> str | None:
        chosen = wanted
        if chosen is None and self._select_adapter is not None:
            chosen = self._select_adapter(arrival, tuple(self._adapters))
        if chosen is not None and chosen not in self._adapters:
            raise NotFoundError(
                f"there is no adapter {chosen!r} here.{nearest(chosen, self._adapters)}",
                param="model",
                code="model_not_found",
            )
        return chosen


def check_prompt_length(length: int, max_length: int) -> None:
    """Refuse an empty prompt, and one that leaves no room for an answer."""
    if length == 0:
        raise RequestError("the prompt is empty: it must have at least one token.", param="prompt")
    if length >= max_length:
        raise RequestError(
            f"this model's maximum context length is {max_length} tokens, however the prompt has {length}; "
            f"at most {max_length - 1} leave room for an answer.",
            param="prompt",
            code="context_length_exceeded",
        )


def resolve_max_tokens(params: SamplingParams, prompt_length: int, max_length: int) -> int:
    """How many tokens may be generated; refuses more than fit behind the prompt."""
    room = max_length - prompt_length
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(
            f"max_tokens is {params.max_tokens} and the prompt has {prompt_length} tokens, together "
            f"{params.max_tokens + prompt_length}; this model's maximum context length is {max_length} tokens, "
            f"so max_tokens may be at most {room}.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    if params.min_tokens > room:
        raise RequestError(
            f"min_tokens is {params.min_tokens}; only {room} tokens fit behind a prompt of {prompt_length}.",
            param="min_tokens",
            code="context_length_exceeded",
        )
    return room if params.max_tokens is None else params.max_tokens


def _check_unicode(text: str, param: str) -> None:
    """Half a surrogate pair can be in a Python string, but in no tokenizer and no message."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{param} is not valid Unicode: character {error.start} is half of a surrogate pair.", param=param
        ) from None


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> list[int]:
    """A list of plain integers, all of them ids that the model has."""
    try:
        if isinstance(token_ids, (str, bytes, bytearray, Mapping, Set)):
            raise TypeError
        if any(isinstance(token, bool) for token in token_ids):
            raise TypeError
        ids = [operator.index(token) for token in token_ids]
    except TypeError:
        raise RequestError(f"{param} must be text or a list of token ids.", param=param) from None
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise RequestError(
            f"{param} contains token id {wrong}; this model's ids are 0 to {vocab_size - 1}.", param=param
        )
    return ids


def _check_labels(priority: int, cache_salt: str | None) -> None:
    if type(priority) is not int or not -_PRIORITY_LIMIT <= priority < _PRIORITY_LIMIT:
        raise RequestError(f"priority must be a 32-bit integer, not {priority!r}.", param="priority")
    if cache_salt is not None and not (isinstance(cache_salt, str) and 0 < len(cache_salt) <= MAX_SALT_LENGTH):
        raise RequestError(f"cache_salt must be text of 1 to {MAX_SALT_LENGTH} characters.", param="cache_salt")
    _check_unicode(cache_salt or "", "cache_salt")
