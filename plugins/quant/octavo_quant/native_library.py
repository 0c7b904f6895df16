"""The C++ library of this plugin. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final

from octavo.native import NativeLibrary

LIBRARY: Final = NativeLibrary(
    name="octavo-quant",
    summary="Linear layers with 4-bit and 8-bit weights for CPUs with AVX2.",
    sources=(Path(__file__).parent / "native" / "grouped.cpp",),
)
_pointer, _long, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled library, its functions typed. Raises :class:`octavo.errors.PluginError` where it is missing."""
    library = LIBRARY.load()
    library.octavo_grouped_pack.argtypes = (_pointer, _int, _long, _long, _pointer)
    library.octavo_grouped.argtypes = (
        *(_pointer, _long, _pointer, _int, _pointer, _pointer),
        *(_long, _long, _long, _pointer, _pointer, _int),
    )
    library.octavo_grouped_pack.restype = library.octavo_grouped.restype = None
    return library
