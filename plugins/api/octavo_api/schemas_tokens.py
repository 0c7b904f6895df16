"""Bodies of the routes that take texts or token ids and generate nothing: embeddings, scores, tokenizing."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainValidator, StringConstraints

from octavo_api.schemas import MAX_NAME, Body, CacheSalt, Int, Label, TokenId
from octavo_api.schemas_chat import Message, TemplateKwargs
from octavo_api.schemas_completions import Prompt, prompts_of

MAX_TOKENS: Final = 1 << 20

ModelName = Annotated[str, StringConstraints(max_length=MAX_NAME)]
Prompts = Annotated[
    list[Prompt],
    PlainValidator(prompts_of, json_schema_input_type=str | list[int] | list[str] | list[list[int]]),
]


class NamedBody(Body):
    """A request that may name a model."""

    model: ModelName | None = Field(None, description="A served name, see /v1/models; the base model when absent.")
    user: Label | None = Field(None, description="Informational: told to adapter-selection plugins.")


class PoolingBody(NamedBody):
    """What embeddings and scores have in common."""

    pooling: Literal["last", "mean"] | None = Field(
        None, description="The last token's hidden state or the mean over all; default: what the checkpoint says."
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(
        None, description="Keep this many of the last tokens of each input; -1: as many as the context holds."
    )
    add_special_tokens: bool | None = Field(None, description="Default true: as the model's tokenizer does.")
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = Field(
        None, description="Lower runs first, where the scheduling policy looks at it."
    )
    cache_salt: CacheSalt | None = Field(
        None, description="Only requests with the same salt share cached prompt beginnings."
    )


class EmbeddingBody(PoolingBody):
    """A request for embeddings."""

    input: Prompts = Field(description="A text, token ids, or a list of such.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or little-endian float32 in base64. Default: float."
    )
    dimensions: Int | None = Field(None, description="Keep the first so many, scaled to length 1 again.")
    normalize: bool | None = Field(None, description="Default true: vectors of length 1.")


class ScoreBody(PoolingBody):
    """Scores of pairs: one text with each of several, or two lists of the same length."""

    text_1: Prompts = Field(description="A text, or a list of them.")
    text_2: Prompts = Field(description="Likewise.")


class RerankBody(PoolingBody):
    """Documents in the order of their nearness to a query."""

    query: str = Field(description="What is looked for.")
    documents: Annotated[list[str], Field(min_length=1, fail_fast=True)] = Field(description="Texts to be ordered.")
    top_n: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        None, description="How many to answer with; 0: all."
    )
    return_documents: bool | None = Field(None, description="Default true: answer with the texts as well.")


class TokenizeBody(NamedBody):
    """A text, or a conversation, to be made into tokens."""

    prompt: str | None = Field(None, description="A text; or else give messages.")
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="A conversation, which goes through the chat template."
    )
    add_special_tokens: bool | None = Field(None, description="Default true for a text; conversations need none.")
    add_generation_prompt: bool | None = Field(None, description="End with the start of an answer; default true.")
    continue_final_message: bool | None = Field(None, description="Leave the last message open.")
    chat_template_kwargs: TemplateKwargs | None = Field(None, description="Switches of the chat template.")
    tools: list[dict[str, Any]] | None = Field(None, description="Tools that the chat template is told of.")
    return_token_strs: bool | None = Field(None, description="Answer with each token's text as well.")


class DetokenizeBody(NamedBody):
    """Token ids to be made into text."""

    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)] = Field(description="Token ids.")
    skip_special_tokens: bool | None = Field(None, description="Default false: special tokens stand in the text.")
