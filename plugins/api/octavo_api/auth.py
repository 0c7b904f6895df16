"""API keys: read once, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path

from octavo.errors import ConfigError
from octavo_api.errors import HttpError
from octavo_api.options import OpenAIOptions


def load_keys(options: OpenAIOptions) -> tuple[bytes, ...]:
    """Digests of all accepted keys; empty when the surface is open. Raises :class:`ConfigError`."""
    keys = [options.api_key.get_secret_value()] if options.api_key is not None else []
    if options.api_key_file is not None:
        keys += _read_keys(options.api_key_file)
    if any(not key.strip() for key in keys):
        raise ConfigError("may not be empty; leave it out for a server without a key.", "api_key")
    return tuple(_digest(key) for key in keys)


def load_admin_keys(options: OpenAIOptions) -> tuple[bytes, ...]:
    """Digest of the operator's key; empty where there is none. Raises :class:`ConfigError`."""
    if options.admin_key is None:
        return ()
    key = options.admin_key.get_secret_value()
    if not key.strip():
        raise ConfigError("may not be empty; leave it out for a server without admin routes.", "admin_key")
    if _digest(key) in load_keys(options):
        raise ConfigError("must not be one of the clients' keys.", "admin_key")
    return (_digest(key),)


def credentials(headers: Mapping[str, str]) -> str | None:
    """The Authorization header, or what stands in its place where clients send ``x-api-key``."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (None if key is None else f"Bearer {key}")


def check_key(authorization: str | None, keys: Sequence[bytes]) -> None:
    """Raise 401 unless ``authorization`` is ``Bearer KEY`` with one of ``keys`` (digests)."""
    if not keys:
        return
    scheme, _, key = (authorization or "").partition(" ")
    given = _digest(key.strip())
    # All keys are compared, whatever the outcome, so that time tells nothing.
    matches = [hmac.compare_digest(given, known) for known in keys]
    if scheme.lower() == "bearer" and any(matches):
        return
    if authorization is None:
        message = "This server needs an API key: send the header 'Authorization: Bearer KEY'."
    else:
        message = "The API key is not one that this server accepts."
    raise HttpError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _read_keys(path: str) -> list[str]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path!r}: {error}", "api_key_file") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"{path!r} holds no key; write one a line.", "api_key_file")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
