"""Names of prefixes: a chain of SHA-256 digests, one a full block.

A digest stands for everything that the keys and values of a block depend on: the weights, the cache's dtype, the
adapter's contents, and all token ids from the start. Two requests share a block only if all of it is equal. The
salt separates clients who must not learn from timing what others have asked.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256

_SWAP = sys.byteorder == "big"


def root_hash(model_digest: str, kv_dtype: str, adapter_digest: str | None, cache_salt: str | None) -> bytes:
    """Parent of the first block (32 bytes).

    ``adapter_digest`` identifies the adapter's *contents*: names may be given to other weights later. Fields are
    length-prefixed, and ``None`` differs from the empty string.
    """
    digest = sha256(b"octavo kv prefix 1")
    for field in (model_digest, kv_dtype, adapter_digest, cache_salt):
        if field is None:
            digest.update(b"\0")
            continue
        data = field.encode("utf-8", "surrogatepass")  # JSON may bring lone surrogates
        digest.update(b"\1" + len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def extend(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Digest (32 bytes) of the block that holds ``tokens`` (ids below 2**32) and follows ``parent``.

    The parent has a fixed length and each token four bytes, so that no two inputs spell the same bytes.
    """
    words = array("I", tokens)
    if _SWAP:
        words.byteswap()
    return sha256(parent + words.tobytes()).digest()
