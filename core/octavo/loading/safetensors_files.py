"""Safetensors folders: which files belong to a checkpoint and what their headers say. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.loading.fields import read_json_object

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One tensor as a file's header describes it. ``dtype`` in the format's spelling, such as ``BF16``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes, from the end of the header
    nbytes: int
    file: Path


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, in order; empty when there are none.

    The index decides where there is one, then ``model.safetensors``, then every ``*.safetensors``: some
    checkpoints carry a second copy of the weights under another name.
    """
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{index}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:4])}. "
                "Download the checkpoint again, or copy the files beside the index."
            )
        return tuple(folder / name for name in names)
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    return tuple(sorted(folder.glob("*.safetensors")))


def read_entries(folder: Path) -> dict[str, HeaderEntry]:
    """All tensors of a checkpoint by name.

    Raises :class:`CheckpointError` for truncated files, damaged headers, a tensor stored twice, and an index
    that promises what its files do not hold.
    """
    entries: dict[str, HeaderEntry] = {}
    for path in weight_files(folder):
        for name, entry in read_header(path).items():
            if name in entries:
                raise CheckpointError(
                    f"{path}: tensor {name} is also in {entries[name].file.name}; keep one of them."
                )
            entries[name] = entry
    index = folder / _INDEX
    if index.is_file():
        for name, file in _weight_map(index).items():
            if name not in entries or entries[name].file.name != file:
                raise CheckpointError(f"{index}: says that {file} holds tensor {name}, but it does not.")
    return entries


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """The header of one file: 8 bytes of length, then JSON. Checks that the file is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: not a safetensors file, or truncated inside its header.")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: _entry(name, value, path) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its safetensors header is damaged: {error}.") from error
    expected = 8 + length + max((entry.start + entry.nbytes for entry in entries.values()), default=0)
    if size < expected:
        raise CheckpointError(
            f"{path}: truncated: {size} bytes, but its header describes {expected}. Download the file again."
        )
    return entries


def _entry(name: str, value: Mapping[str, Any], path: Path) -> HeaderEntry:
    start, end = (int(offset) for offset in value["data_offsets"])
    if not 0 <= start <= end:
        raise ValueError(f"tensor {name} has offsets {start} to {end}")
    shape = tuple(int(size) for size in value["shape"])
    return HeaderEntry(
        name=name, dtype=str(value["dtype"]), shape=shape, start=start, nbytes=end - start, file=path
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor name to file name.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{index}: weight_map of {name} must be the name of a file beside it, not {file!r}."
            )
    return weight_map
