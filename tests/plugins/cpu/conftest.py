"""The native libraries, compiled once for all tests of this folder, in a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import native
from octavo_cpu import library as cpu
from octavo_quant import native_library as quant


@pytest.fixture(scope="session")
def native_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = native.unsupported() or (None if native.compiler() else "there is no C++ compiler")
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        cpu.LIBRARY.build()
        quant.LIBRARY.build()
    return folder


@pytest.fixture
def built(native_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both libraries are there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(native_cache))
    yield
    cpu.load.cache_clear()
    quant.load.cache_clear()
