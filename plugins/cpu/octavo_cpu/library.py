"""The C++ library of this plugin, and its functions with their argument types. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final

from octavo.native import NativeLibrary

_FOLDER: Final = Path(__file__).parent / "native"
LIBRARY: Final = NativeLibrary(
    name="octavo-cpu",
    summary="Float32 linear layers, attention and small operations for CPUs with AVX2.",
    sources=tuple(_FOLDER / name for name in ("linear.cpp", "attention.cpp", "ops.cpp")),
)

_pointer, _long, _int, _float = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES: Final[dict[str, tuple[type, ...]]] = {
    "octavo_linear_pack": (_pointer, _long, _long, _pointer),
    "octavo_linear": (_pointer, _long, _pointer, _long, _long, _pointer, _pointer, _int),
    "octavo_rms_norm": (_pointer, _pointer, _long, _long, _float, _pointer, _int),
    "octavo_add_rms_norm": (_pointer, _pointer, _pointer, _long, _long, _float, _pointer, _int),
    "octavo_silu_mul": (_pointer, _long, _long, _pointer, _int),
    "octavo_rope": (
        *(_pointer, _long, _long, _long, _long, _pointer, _pointer, _long),
        *(_pointer, _pointer, _long, _float, _pointer, _int),
    ),
    "octavo_attention": (
        *(_pointer, _pointer, _pointer, _long, _pointer, _long, _pointer, _long),
        *(_pointer, _long, _pointer, _int),
    ),
}


class Shape(ctypes.Structure):
    """``OctavoShape``: one layer of attention."""

    _fields_ = [
        *((name, _long) for name in ("heads", "kv_heads", "size", "block_size", "window")),
        *((name, _float) for name in ("scale", "soft_cap")),
    ]


class Step(ctypes.Structure):
    """``OctavoStep``: where the tokens of a step stand."""

    _fields_ = [
        *((name, _long) for name in ("tokens", "rows", "width")),
        *((name, _pointer) for name in ("slots", "tables", "lengths", "starts")),
    ]


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled library, its functions typed."""
    library = LIBRARY.load()
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
