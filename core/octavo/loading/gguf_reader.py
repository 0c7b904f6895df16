"""The header of a GGUF file: its metadata and where its tensors lie. No torch, no numpy.

Why not the ``gguf`` package's own reader: it makes numpy views of every string of the vocabulary, which takes
3.3 s for SmolLM2's 98,000 tokens and merges; this takes 0.06 s. Dequantisation is left to the package.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_MAX_DIMS = 4
_MAX_NESTING = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One stored tensor: ``shape`` rows first, ``type`` as ggml numbers it, ``offset`` in bytes from the start."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of itself."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header. Raises :class:`CheckpointError` for anything that is not a complete GGUF header."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data, path).file()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as GGUF: {error}.") from error
    except (struct.error, IndexError) as error:
        raise CheckpointError(f"{path}: truncated inside its header. Download the file again.") from error


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.size = len(data)
        self.path = path
        self.at = 0

    def file(self) -> GgufFile:
        if self.data[:4] != b"GGUF":
            raise CheckpointError(f"{self.path}: not a GGUF file (it does not begin with the letters GGUF).")
        self.at = 4
        version = self.u32()
        if version not in _VERSIONS:
            swapped = version & 0xFFFF == 0
            what = "is big-endian; Octavo reads little-endian files" if swapped else f"has GGUF version {version}"
            raise CheckpointError(f"{self.path}: {what}; versions 2 and 3 are supported. Convert the model again.")
        tensors, pairs = self.u64(), self.u64()
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string()
            metadata[key] = self.value(self.u32())
        return GgufFile(path=self.path, metadata=metadata, tensors=self.tensors(tensors, metadata))

    def tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
        found = [(self.string(), self.dims(), self.u32(), self.u64()) for _ in range(count)]
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            raise self.damaged(f"general.alignment is {align!r}")
        start = -(-self.at // align) * align
        tensors = {name: GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in found}
        if len(tensors) != count:
            raise self.damaged("a tensor name occurs twice")
        if max((tensor.offset for tensor in tensors.values()), default=0) > self.size:
            raise CheckpointError(f"{self.path}: truncated: tensors lie beyond its end. Download the file again.")
        return tensors

    def dims(self) -> tuple[int, ...]:
        count = self.u32()
        if count > _MAX_DIMS:
            raise self.damaged(f"a tensor has {count} dimensions")
        return tuple(reversed([self.u64() for _ in range(count)]))  # stored with the innermost first

    def u32(self) -> int:
        (value,) = _U32.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def u64(self) -> int:
        (value,) = _U64.unpack_from(self.data, self.at)
        self.at += 8
        return int(value)

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """The loop that reading a vocabulary spends its time in."""
        data, at, size, length, out = self.data, self.at, self.size, _U64.unpack_from, []
        for _ in range(count):
            start = at + 8
            at = start + length(data, at)[0]
            if at > size:
                raise IndexError
            out.append(data[start:at].decode("utf-8", "replace"))
        self.at = at
        return out

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < _MAX_NESTING:
            return self.array(depth)
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], 1)[0]
        raise self.damaged(f"metadata value of unknown type {kind}")

    def array(self, depth: int) -> list[Any]:
        kind, count = self.u32(), self.u64()
        if count > self.size:
            raise IndexError
        if kind == _STRING:
            return self.strings(count)
        if kind in _SCALARS:
            return list(self.scalars(_SCALARS[kind], count))
        return [self.value(kind, depth + 1) for _ in range(count)]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: its GGUF header is damaged: {what}.")
