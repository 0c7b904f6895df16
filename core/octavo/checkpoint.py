"""What a checkpoint folder holds, for schemes that must know before any layer is made: the public face of
:mod:`octavo.loading`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import CheckpointError
from octavo.loading.safetensors_files import HeaderEntry, read_entries
from octavo.records import ModelProfile

if TYPE_CHECKING:
    import torch

__all__ = ["HeaderEntry", "gguf_types", "read_tensors", "stored_tensors"]


def stored_tensors(profile: ModelProfile) -> Mapping[str, HeaderEntry]:
    """Every tensor of a safetensors checkpoint by name, from the files' headers; empty for other formats.

    Raises :class:`CheckpointError` for damaged files.
    """
    return read_entries(Path(profile.path)) if profile.format == "safetensors" else {}


def read_tensors(entries: Mapping[str, HeaderEntry]) -> dict[str, torch.Tensor]:
    """The tensors themselves, on the host: for small ones that decide how a layer is made."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, torch.Tensor] = {}
    for path in dict.fromkeys(entry.file for entry in entries.values()):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name, entry in entries.items():
                    if entry.file == path:
                        found[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged: {error}. Download the file again.") from error
    return found


def gguf_types(profile: ModelProfile) -> Callable[[str], str | None]:
    """For a .gguf file: a tensor's name in the model's spelling (``….weight``) to its type, such as ``Q4_K``, or
    ``None`` where it is not there. A layer that wants the blocks themselves names its tensor ``….weight.Q4_K``."""
    from octavo.loading.gguf import stored_types

    return stored_types(profile)
