"""What both generation endpoints accept. Types are strict: ``"5"`` is no integer and ``true`` no number.

Fields may be null, which means absent. Fields not declared end in ``model_extra``; :mod:`octavo_api.unsupported`
decides about them. Ranges are :class:`octavo.params.SamplingParams`'s business.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints
from pydantic.config import JsonDict

from octavo.params import RANGES

MAX_NAME: Final = 256
MAX_IDS: Final = 4096
MAX_BIASES: Final = 1024
MAX_EXTRA: Final = 32

Int = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
Label = Annotated[str, StringConstraints(max_length=512)]
BiasKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]
CacheSalt = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~:=+-]{1,128}$")]


def _stop(value: object) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items
    raise ValueError("must be a string or a list of strings")


Stop = Annotated[list[str], PlainValidator(_stop, json_schema_input_type=str | list[str])]


class Body(BaseModel):
    """Base of request objects."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = Field(None, description="A last chunk with the token counts.")
    continuous_usage_stats: bool | None = Field(None, description="Token counts so far in every chunk.")


def _ranged(name: str, description: str) -> Any:
    """A field whose range :class:`SamplingParams` checks, so that the document tells of it as well."""
    low, high, _ = RANGES[name]
    bounds: JsonDict = {}
    if low > -math.inf:
        bounds["exclusiveMinimum" if 0 < low < 1e-300 else "minimum"] = 0 if 0 < low < 1e-300 else low
    if high < math.inf:
        bounds["maximum"] = high
    return Field(None, description=description, json_schema_extra=bounds)


class GenerationBody(Body):
    """Sampling and streaming, as OpenAI and vLLM name them."""

    model: Annotated[str, StringConstraints(max_length=MAX_NAME)] | None = Field(
        None, description="A served name, see /v1/models; the base model when absent."
    )
    temperature: float | None = _ranged("temperature", "0 takes the likeliest token; higher is more random.")
    top_p: float | None = _ranged("top_p", "Draw from the likeliest tokens that hold this much probability.")
    top_k: Int | None = _ranged("top_k", "Draw from this many of the likeliest tokens; 0 or -1: from all.")
    min_p: float | None = _ranged("min_p", "Draw from tokens at least this likely, next to the likeliest.")
    repetition_penalty: float | None = _ranged("repetition_penalty", "Above 1, earlier tokens get rarer.")
    presence_penalty: float | None = _ranged("presence_penalty", "Taken from the logits of tokens in the answer.")
    frequency_penalty: float | None = _ranged("frequency_penalty", "Likewise, once for each time they stand in it.")
    logit_bias: Annotated[dict[BiasKey, float], Field(max_length=MAX_BIASES)] | None = Field(
        None, description="Added to logits, by token id: -100 to 100."
    )
    seed: Int | None = _ranged("seed", "The same seed and request give the same answer.")
    n: Int | None = _ranged("n", "Answers to each prompt.")
    max_tokens: Int | None = _ranged("max_tokens", "Longest answer, in tokens.")
    min_tokens: Int | None = _ranged("min_tokens", "Shortest answer, in tokens; nothing ends it before that.")
    stop: Stop | None = Field(None, description="Texts that end the answer.")
    stop_token_ids: TokenIds | None = Field(None, description="Tokens that end the answer.")
    include_stop_str_in_output: bool | None = Field(None, description="Keep the text that ended the answer.")
    ignore_eos: bool | None = Field(None, description="Go on behind the end of text.")
    skip_special_tokens: bool | None = Field(
        None, description="Leave special tokens out of the text; default true."
    )
    bad_words: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Texts that must not be generated."
    )
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, description="Generate from these tokens only."
    )
    prompt_logprobs: Int | None = _ranged("prompt_logprobs", "Likeliest tokens to report for the prompt.")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(
        None, description="Keep this many of the last tokens of the prompt; -1: as many as the context holds."
    )
    extra: Annotated[dict[str, Any], Field(max_length=MAX_EXTRA)] | None = Field(
        None, description="Options of the server's logits processors, by their names."
    )

    stream: bool | None = Field(None, description="Answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="What a stream tells beside the text.")
    return_token_ids: bool | None = Field(None, description="Answer with token ids beside the text.")

    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = Field(
        None, description="Lower runs first, where the scheduling policy looks at it."
    )
    cache_salt: CacheSalt | None = Field(
        None, description="Only requests with the same salt share cached prompt beginnings."
    )
    request_id: Label | None = Field(None, description="A label for the server's log and for observers.")
    user: Label | None = Field(None, description="Informational: told to adapter-selection plugins.")
    safety_identifier: Label | None = Field(None, description="Informational; changes nothing here.")
    prompt_cache_key: Label | None = Field(
        None, description="A routing hint; there is one prefix cache here and it always looks."
    )

    def sampling(self) -> dict[str, Any]:
        """The values given for :class:`octavo.params.SamplingParams`, under its names."""
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        return given


_SAMPLING: Final = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "bad_words",
    "allowed_token_ids",
    "prompt_logprobs",
    "extra",
)
