"""``chat_template_kwargs``: only what the operator allows gets to a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import RequestError


def check_template_kwargs(given: Mapping[str, Any] | None, allowed: Sequence[str]) -> None:
    """Raise :class:`RequestError` for a name that is not ``allowed``."""
    for name in given or ():
        if name not in allowed:
            raise RequestError(
                f"chat_template_kwargs may set {', '.join(allowed) or 'nothing'} here, not {name[:100]!r}.",
                param="chat_template_kwargs",
            )
