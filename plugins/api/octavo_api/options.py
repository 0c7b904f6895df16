"""What may be set for the ``openai`` surface."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from octavo.config.schema import Section
from octavo.params import MAX_LOGPROBS, MAX_SEQUENCES_PER_REQUEST


class OpenAIOptions(Section):
    """Options of the `openai` surface. Times are in seconds."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    api_key: SecretStr | None = Field(None, description="Clients must send this as `Authorization: Bearer KEY`.")
    api_key_file: str | None = Field(None, description="File with accepted keys, one a line; beside `api_key`.")
    admin_key: SecretStr | None = Field(
        None, description="Key of the routes that change the server; without one there are none."
    )
    certfile: str | None = Field(None, description="Certificate chain (PEM): serve HTTPS.")
    keyfile: str | None = Field(None, description="Private key of `certfile`, where it is not in that file.")
    allowed_origins: list[str] = Field([], description="Web origins whose pages may call (CORS); `*` for all.")
    served_names: list[str] = Field([], description="Names for the model in place of its own; the first is shown.")
    metrics: bool = Field(True, description="Serve Prometheus figures at /metrics.")

    unknown_fields: Literal["error", "ignore"] = Field(
        "error", description="What to do with request fields that this server does not know."
    )
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body; a larger one gets 413.")
    max_concurrent: int | None = Field(None, ge=1, description="Requests answered at once; one more gets 429.")
    max_n: int = Field(32, ge=1, le=MAX_SEQUENCES_PER_REQUEST, description="Largest `n`: answers to one prompt.")
    max_prompts: int = Field(256, ge=1, le=4096, description="Most prompts in one /v1/completions call.")
    max_inputs: int = Field(2048, ge=1, le=65536, description="Most inputs in one call for embeddings or scores.")
    max_logprobs: int = Field(MAX_LOGPROBS, ge=0, le=MAX_LOGPROBS, description="Most log-probabilities a token.")
    default_max_tokens: int | None = Field(
        None, ge=1, description="Answer length where a chat request sets none; default: what the context allows."
    )
    template_kwargs: list[str] = Field(
        ["enable_thinking", "thinking", "reasoning_effort"],
        description="Names that `chat_template_kwargs` may set.",
    )
    tool_parser: str = Field(
        "auto", description="How the model writes tool calls: `auto` goes by its chat template; `none`; or a name."
    )
    reasoning: Literal["auto", "none", "think", "magistral", "seed"] = Field(
        "auto",
        description="Marks around a reasoning: `auto` goes by the chat template; `none`: it is text.",
    )
    scoring: Literal["none", "cosine"] = Field(
        "none",
        description="Serve /v1/score and /v1/rerank with the `cosine` of embeddings; for embedding models.",
    )
    max_responses: int = Field(1000, ge=0, description="Answers that /v1/responses keeps; 0 keeps none.")
    response_ttl: float = Field(3600.0, gt=0, description="How long it keeps them.")
    report_cached_tokens: bool = Field(
        True, description="Tell clients how much of a prompt came from the prefix cache."
    )

    body_timeout: float = Field(30.0, gt=0, description="A request body must have arrived after this time.")
    request_timeout: float | None = Field(None, gt=0, description="Longest time for one answer; default: none.")
    stream_keep_alive: float = Field(
        15.0, gt=0, description="A silent stream sends a comment this often, so that proxies keep it open."
    )
