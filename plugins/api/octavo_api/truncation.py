"""``truncate_prompt_tokens``: what is kept of a prompt that may be cut."""

from __future__ import annotations

from octavo.contracts.api import EngineClient


def truncated(ids: list[int], keep: int | None, client: EngineClient) -> list[int]:
    """The last ``keep`` of ``ids``; all for ``None``; for -1 as many as leave room for a token behind them."""
    if keep is None:
        return ids
    most = client.max_length - 1 if keep < 0 else keep
    return ids[-most:] if most else []
