"""What both generation endpoints accept. Types are strict: ``"5"`` is no integer and ``true`` no number.

Fields may be null, which means absent. Fields not declared end in ``model_extra``; :mod:`octavo_api.unsupported`
decides about them. Ranges are :class:`octavo.params.SamplingParams`'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints

MAX_NAME: Final = 256
MAX_IDS: Final = 4096
MAX_BIASES: Final = 1024

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


class GenerationBody(Body):
    """Sampling and streaming, as OpenAI and vLLM name them."""

    model: Annotated[str, StringConstraints(max_length=MAX_NAME)] | None = Field(
        None, description="A served name, see /v1/models; the base model when absent."
    )
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[BiasKey, float], Field(max_length=MAX_BIASES)] | None = None
    seed: Int | None = None
    n: Int | None = None
    max_tokens: Int | None = None
    min_tokens: Int | None = None
    stop: Stop | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: Annotated[list[str], Field(fail_fast=True)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    prompt_logprobs: Int | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = Field(None, description="Answer with token ids beside the text.")

    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = Field(
        None, description="Lower runs first, where the scheduling policy looks at it."
    )
    cache_salt: CacheSalt | None = Field(
        None, description="Only requests with the same salt share cached prompt beginnings."
    )
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
)
