"""How one request is sampled. The same frozen record travels from Python or HTTP to the engine process."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from octavo.errors import RequestError
from octavo.structured import StructuredOutputs

MAX_LOGPROBS: Final = 20
MAX_STOP: Final = 16
MAX_SEQUENCES_PER_REQUEST: Final = 128
MAX_BAD_WORDS: Final = 128
_GREEDY_BELOW: Final = 1e-5


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters, named and defaulted as in vLLM and the OpenAI API.

    Raises :class:`RequestError` naming the field when a value has the wrong type or is out of range.
    ``max_tokens=None`` means "as many as the context allows". ``extra`` carries options for
    logits-processor plugins, by processor name.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    structured_outputs: StructuredOutputs | None = None
    extra: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _coerce_sequences(self)
        for name, kind in _TYPES.items():
            _check_type(name, getattr(self, name), kind)
        for name, (low, high, text) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high):
                raise RequestError(f"{name} must be {text}, not {value}.", param=name)
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise RequestError("structured_outputs must be StructuredOutputs.", param="structured_outputs")
        _check_rules(self)

    @property
    def greedy(self) -> bool:
        """True when the highest logit is taken and no noise is drawn."""
        return self.temperature < _GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """True when earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that the model's logits do not have."""
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            for token in getattr(self, name) or ():
                if not 0 <= token < vocab_size:
                    raise RequestError(
                        f"{name} contains token id {token}; this model's ids are 0 to {vocab_size - 1}.",
                        param=name,
                    )


_INF: Final = math.inf
RANGES: Final[dict[str, tuple[float, float, str]]] = {
    "n": (1, MAX_SEQUENCES_PER_REQUEST, f"between 1 and {MAX_SEQUENCES_PER_REQUEST}"),
    "temperature": (0.0, 100.0, "between 0 and 100"),
    "top_p": (math.ulp(0.0), 1.0, "greater than 0 and at most 1"),
    "top_k": (-1, _INF, "-1 or 0 (off), or at least 1"),
    "min_p": (0.0, 1.0, "between 0 and 1"),
    "repetition_penalty": (1e-6, 1e6, "greater than 0"),
    "presence_penalty": (-2.0, 2.0, "between -2 and 2"),
    "frequency_penalty": (-2.0, 2.0, "between -2 and 2"),
    "seed": (-(2**63), 2**63 - 1, "a 64-bit integer"),
    "max_tokens": (1, _INF, "at least 1"),
    "min_tokens": (0, _INF, "at least 0"),
    "logprobs": (0, MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}"),
    "prompt_logprobs": (0, MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}"),
}
"""Lowest and highest value of each number, and both in words."""

_TYPES: Final[dict[str, str]] = {
    "n": "int",
    "temperature": "float",
    "top_p": "float",
    "top_k": "int",
    "min_p": "float",
    "repetition_penalty": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "seed": "int?",
    "max_tokens": "int?",
    "min_tokens": "int",
    "include_stop_str_in_output": "bool",
    "ignore_eos": "bool",
    "logprobs": "int?",
    "prompt_logprobs": "int?",
    "skip_special_tokens": "bool",
    "detokenize": "bool",
}


def _coerce_sequences(params: SamplingParams) -> None:
    """Accept a single stop string and any sequence; store tuples, so that the record stays immutable."""
    for name, kind in (
        ("stop", str),
        ("bad_words", str),
        ("stop_token_ids", int),
        ("allowed_token_ids", int),
    ):
        value = getattr(params, name)
        if value is None and name == "allowed_token_ids":
            continue
        value = () if value is None else (value,) if isinstance(value, str) else value
        if not isinstance(value, (list, tuple)) or not all(type(item) is kind for item in value):
            raise RequestError(f"{name} must be a list of {kind.__name__}.", param=name)
        msgspec.structs.force_setattr(params, name, tuple(value))


def _check_type(name: str, value: object, kind: str) -> None:
    if value is None and kind.endswith("?"):
        return
    wanted = kind.rstrip("?")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    valid = {
        "int": number and isinstance(value, int),
        "float": number and math.isfinite(float(value)) if number else False,  # type: ignore[arg-type]
        "bool": isinstance(value, bool),
    }[wanted]
    if not valid:
        text = {"int": "an integer", "float": "a finite number", "bool": "true or false"}[wanted]
        raise RequestError(f"{name} must be {text}, not {value!r}.", param=name)


def _check_rules(params: SamplingParams) -> None:
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens ({params.min_tokens}) is greater than max_tokens ({params.max_tokens}).",
            param="min_tokens",
        )
    if len(params.stop) > MAX_STOP:
        raise RequestError(f"stop may hold at most {MAX_STOP} strings, not {len(params.stop)}.", param="stop")
    if len(params.bad_words) > MAX_BAD_WORDS:
        raise RequestError(f"bad_words may hold at most {MAX_BAD_WORDS} words.", param="bad_words")
    for name in ("stop", "bad_words"):
        if any(not text for text in getattr(params, name)):
            raise RequestError(f"{name} may not contain an empty string.", param=name)
    if params.allowed_token_ids is not None and not params.allowed_token_ids:
        raise RequestError("allowed_token_ids may not be empty.", param="allowed_token_ids")
    if params.stop and not params.detokenize:
        raise RequestError("stop strings need detokenize=True; use stop_token_ids instead.", param="stop")
    for token, bias in (params.logit_bias or {}).items():
        if type(token) is not int or not isinstance(bias, (int, float)) or not math.isfinite(bias):
            raise RequestError("logit_bias must map token ids to finite numbers.", param="logit_bias")
        if not -100 <= bias <= 100:
            raise RequestError(f"logit_bias of token {token} must be between -100 and 100.", param="logit_bias")
