"""Small C++ libraries that plugins may bring, compiled on this machine when asked for, found by their sources.

A plugin ships sources with a plain C interface and contributes a :class:`NativeLibrary` through the hook
``octavo_native_libraries``; ``octavo native build`` compiles all there are, in seconds. Its records state in
``supports`` what :meth:`NativeLibrary.missing` answers, so that nothing is compiled behind anybody's back and an
engine without the library is complete. Imports no torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo.errors import PluginError

_COMPILERS: Final = ("g++", "clang++", "c++")
_FLAGS: Final = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_NEEDED: Final = {"avx2", "fma", "f16c"}
_INCLUDE: Final = Path(__file__).parent / "include"
_CPUINFO: Final = Path("/proc/cpuinfo")
_MAPS: Final = Path("/proc/self/maps")
_OPENMP: Final = re.compile(r"/\S*lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """C++ for x86-64 with AVX2, FMA and F16C, threaded with OpenMP. ``name`` is a file name, unique among plugins.

    ``sources`` are the files to compile. They may include ``octavo_simd.h``, and headers that lie beside them.
    """

    name: str
    summary: str
    sources: tuple[Path, ...]

    def path(self) -> Path:
        """Where it is, or would be: the name tells sources, flags and CPU apart."""
        return cache_folder() / f"{self.name}-{self._digest()}.so"

    def missing(self) -> str | None:
        """``None`` when it can be loaded, or the reason why not and what to do."""
        reason = unsupported()
        if reason is not None:
            return reason
        if self.path().is_file():
            return None
        if compiler() is None:
            return f"its C++ is not compiled, and there is no compiler here ({', '.join(_COMPILERS)})"
        return "its C++ is not compiled: run `octavo native build`"

    def build(self) -> Path:
        """Compile it, unless that was done; raises :class:`PluginError` with what the compiler said."""
        reason, command = unsupported(), compiler()
        if reason is not None:
            raise PluginError(f"native library {self.name!r}: {reason}.")
        path = self.path()
        if path.is_file():
            return path
        if command is None:
            raise PluginError(f"native library {self.name!r}: there is no compiler here ({', '.join(_COMPILERS)}).")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name  # not at its place before it is whole
            arguments = [command, *_FLAGS, f"-I{_INCLUDE}", "-o", str(made), *map(str, self.sources)]
            result = subprocess.run(arguments, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise PluginError(f"native library {self.name!r}: {command} failed.\n{result.stderr[-4000:]}")
            made.replace(path)
        return path

    def load(self) -> ctypes.CDLL:
        """The compiled library. Its threads are those of the OpenMP runtime that is in this process already
        (torch's): two runtimes would fight over the cores. Raises :class:`PluginError` where it is missing."""
        reason = self.missing()
        if reason is not None:
            raise PluginError(f"native library {self.name!r}: {reason}.")
        runtime = _openmp()
        if runtime is not None:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(self.path()))

    def _digest(self) -> str:
        digest = hashlib.sha256("\n".join((*_FLAGS, *sorted(_cpu_flags()))).encode())
        folders = [_INCLUDE, *sorted({source.parent for source in self.sources})]
        for file in [*self.sources, *(header for folder in folders for header in sorted(folder.glob("*.h")))]:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """The user's cache folder for compiled libraries (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "octavo" / "native"


def unsupported() -> str | None:
    """Why native libraries can't run on this machine, or ``None``."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it is written for Linux on x86-64, not {platform.system()} on {platform.machine()}"
    lacking = _NEEDED - _cpu_flags()
    return f"the CPU lacks {', '.join(sorted(lacking))}" if lacking else None


@functools.cache
def compiler() -> str | None:
    """The first C++ compiler on the path."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _openmp() -> str | None:
    """The OpenMP runtime that this process has loaded, under whatever name a wheel gave it."""
    try:
        found = _OPENMP.search(_MAPS.read_text())
    except OSError:
        return None
    return found[0] if found else None
