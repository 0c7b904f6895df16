"""A cheap identity of a checkpoint: equal for equal files, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_SAMPLES = 16
_SAMPLE_BYTES = 4096


def checkpoint_digest(config: Mapping[str, Any], files: Iterable[Path]) -> str:
    """sha256 (hex) over the configuration and, for each file, its name, size and evenly spread samples.

    Sizes and headers alone would not tell a fine-tuned model from its base; hashing everything would take as
    long as loading. 64 KiB of samples a file do tell them apart.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for path in files:
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for step in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * step // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
