"""Log-probabilities in the two shapes that OpenAI's endpoints have, and vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final

from octavo.contracts.api import TokenLogprob

LOWEST: Final = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def finite(value: float) -> float:
    """``value``, or ``LOWEST`` where it is no number for JSON."""
    return value if isfinite(value) else LOWEST


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The ``logprobs`` object of a chat choice."""
    return {
        "content": [{**_chat_token(token), "top_logprobs": [_chat_token(t) for t in token.top]} for token in tokens]
    }


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": finite(token.logprob), "bytes": list(token.bytes)}


class CompletionLogprobs:
    """Builds the ``logprobs`` object of a completion choice, piece by piece; ``offset`` runs over the whole text.

    ``top``: alternatives a token. The token itself is always among them.
    """

    def __init__(self, top: int) -> None:
        self.offset = 0
        self._top = top

    def piece(self, tokens: Sequence[TokenLogprob | None], texts: Sequence[str] = ()) -> dict[str, Any]:
        """One object for these tokens. ``None`` is the first token of a prompt; its text is ``texts[0]``."""
        piece: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for index, token in enumerate(tokens):
            piece["text_offset"].append(self.offset)
            if token is None:
                piece["tokens"].append(texts[index])
                piece["token_logprobs"].append(None)
                piece["top_logprobs"].append(None)
                self.offset += len(texts[index])
                continue
            name = token_name(token)
            top = {token_name(other): finite(other.logprob) for other in token.top[: self._top]}
            piece["tokens"].append(name)
            piece["token_logprobs"].append(finite(token.logprob))
            piece["top_logprobs"].append({**top, name: finite(token.logprob)})
            self.offset += characters(token.bytes)
        return piece


def token_name(token: TokenLogprob) -> str:
    """A token's text; for a piece of a character its bytes, as OpenAI writes them: ``bytes:\\xe2\\x82``."""
    try:
        token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.token


def characters(data: bytes) -> int:
    """Characters that begin in ``data``, so that split ones are counted once."""
    return sum((byte & 0xC0) != 0x80 for byte in data)


def prompt_logprobs(tokens: Sequence[TokenLogprob | None], top: int) -> list[dict[str, Any] | None]:
    """vLLM's shape: for each prompt token, token id to log-probability, rank and text; the first is null."""
    return [None if token is None else _by_id(token, top) for token in tokens]


def _by_id(token: TokenLogprob, top: int) -> dict[str, Any]:
    return {
        str(each.token_id): {"logprob": finite(each.logprob), "rank": each.rank, "decoded_token": each.token}
        for each in (*token.top[:top], token)
    }
