"""Native libraries: compiled on request, found by their sources, explained where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import native
from octavo.errors import PluginError
from octavo.native import NativeLibrary

needs_compiler = pytest.mark.skipif(
    native.unsupported() is not None or native.compiler() is None, reason="no C++ compiler for this CPU"
)
ADD = 'extern "C" int add(int a, int b) { return a + b; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "octavo" / "native"


def library(folder: Path, text: str = ADD) -> NativeLibrary:
    (folder / "add.cpp").write_text(text)
    return NativeLibrary(name="adding", summary="Adds.", sources=(folder / "add.cpp",))


@needs_compiler
def test_built_once_and_loaded(tmp_path: Path, cache: Path) -> None:
    made = library(tmp_path)
    assert "octavo native build" in (made.missing() or "")
    with pytest.raises(PluginError, match="octavo native build"):
        made.load()
    path = made.build()
    assert path.parent == cache
    assert made.missing() is None
    assert made.load().add(2, 3) == 5
    changed = path.stat().st_mtime_ns
    assert made.build() == path
    assert path.stat().st_mtime_ns == changed
    assert [file.name for file in cache.iterdir()] == [path.name]  # nothing half made is left


@needs_compiler
def test_other_sources_or_headers_are_another_library(tmp_path: Path) -> None:
    first = library(tmp_path, '#include "more.h"\n' + ADD)
    (tmp_path / "more.h").write_text("// one\n")
    path = first.build()
    (tmp_path / "more.h").write_text("// two\n")
    assert first.path() != path
    assert first.missing() is not None


@needs_compiler
def test_what_the_compiler_says_reaches_the_user(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(PluginError, match=r"(?s)'adding'.*nonsense"):
        library(tmp_path, "nonsense;\n").build()
    assert list(cache.iterdir()) == []


@needs_compiler
def test_the_shared_header_is_found(tmp_path: Path) -> None:
    text = '#include "octavo_simd.h"\nextern "C" float total(const float* x) { return sum_of(load_first(x, 3)); }\n'
    assert library(tmp_path, text).build().is_file()


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unsupported", lambda: None)
    monkeypatch.setattr(native, "compiler", lambda: None)
    made = library(tmp_path)
    assert "no compiler" in (made.missing() or "")
    with pytest.raises(PluginError, match="no compiler"):
        made.build()


def test_another_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_cpu_flags", lambda: frozenset({"sse2"}))
    monkeypatch.setattr(native.sys, "platform", "linux")
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    assert library(tmp_path).missing() == "the CPU lacks avx2, f16c, fma"
    monkeypatch.setattr(native.platform, "machine", lambda: "aarch64")
    assert "x86-64" in (library(tmp_path).missing() or "")
