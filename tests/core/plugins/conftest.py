"""Distributions made on the spot, importable for the length of one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo.testing.sandbox import write_distribution

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("dist", name="source")``: a distribution with one module and one entry point a keyword."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: list[str] = []

    def add(distribution: str, version: str = "1.0", **sources: str) -> None:
        named = {name: f"{distribution}_{name}".replace("-", "_") for name in sources}
        write_distribution(
            site, distribution, named, {named[name]: text for name, text in sources.items()}, version
        )
        modules.extend(named.values())

    yield add
    for module in modules:
        sys.modules.pop(module, None)
