"""The safetensors loader: sharded checkpoints, read lazily, each rank only its own slice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from octavo.contracts.loading import Progress
from octavo.contracts.model import CausalLM, WeightSlot
from octavo.errors import CheckpointError
from octavo.loading.fill import StoredTensor, fill
from octavo.loading.safetensors_files import HeaderEntry, read_entries
from octavo.records import ModelProfile

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsLoader:
    """A :class:`octavo.contracts.loading.ModelLoader` for folders of ``*.safetensors``."""

    def load(self, model: CausalLM, profile: ModelProfile, progress: Progress) -> None:
        """Copy each slot's slice out of the memory-mapped files. See :func:`octavo.loading.fill.fill`."""
        entries = read_entries(Path(profile.path))
        if not entries:
            raise CheckpointError(f"{profile.path}: holds no *.safetensors files.")
        stored = {name: _stored(entry) for name, entry in entries.items()}
        with ExitStack() as stack:
            files: dict[Path, Any] = {}

            def copy(tensor: StoredTensor, slot: WeightSlot) -> None:
                if tensor.file not in files:
                    files[tensor.file] = stack.enter_context(_open(tensor.file))
                slot.target.copy_(_read(files[tensor.file], tensor, slot))

            fill(model, profile, stored, copy, progress)


def _stored(entry: HeaderEntry) -> StoredTensor:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} is stored as {entry.dtype}; readable are {known}."
        )
    return StoredTensor(entry.name, entry.shape, dtype, entry.file, entry.start, entry.nbytes)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}. Download the file again.") from error


def _read(file: Any, tensor: StoredTensor, slot: WeightSlot) -> torch.Tensor:
    try:
        whole = tuple(slot.target.shape) == tensor.shape
        read: torch.Tensor = file.get_tensor(tensor.name) if whole else file.get_slice(tensor.name)[slot.shard]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} can't be read: {error}.") from error
    return read
