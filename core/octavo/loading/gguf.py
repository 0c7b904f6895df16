"""The GGUF loader: tensors dequantised by the ``gguf`` package while they are copied, or copied as they are.

A slot named after a tensor and its type, such as ``model.layers.0.mlp.up_proj.weight.Q4_K``, takes the blocks
themselves: uint8 [rows, bytes a row]. So a scheme asks for what it wants kept; the rows of query and key are
brought into the checkpoint's order first, as those of dequantised tensors are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from octavo.contracts.loading import Progress
from octavo.contracts.model import CausalLM, WeightSlot
from octavo.errors import CheckpointError
from octavo.loading.fill import StoredTensor, fill
from octavo.loading.gguf_config import ROPE_FACTORS, gguf_architecture
from octavo.loading.gguf_reader import GgufFile, GgufTensor, read_gguf
from octavo.records import ModelProfile

# Elements dequantised at once. Small pieces cost Python calls (the package's own grouping, 16 rows, is four
# times slower on narrow matrices), large ones fall out of the CPU's cache.
_PIECE = 1 << 18
_MAX_THREADS = 8
_NOT_WEIGHTS = frozenset({ROPE_FACTORS})
_NUMPY_TYPES = (torch.float32, torch.float16)


class GgufLoader:
    """A :class:`octavo.contracts.loading.ModelLoader` for one .gguf file.

    ``threads`` work side by side (numpy lets go of the interpreter lock); ``None``: as many as there are cores.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or min(_MAX_THREADS, _cores())

    def load(self, model: CausalLM, profile: ModelProfile, progress: Progress) -> None:
        """Dequantise each slot's rows straight into its target. See :func:`octavo.loading.fill.fill`."""
        file = read_gguf(Path(profile.path))
        slots = {slot.source: slot for slot in model.slots()}
        whole = {name: _without_type(name, slot) for name, slot in slots.items()}
        names = _hf_names(list(whole.values()), file, profile)
        data = np.memmap(file.path, dtype=np.uint8, mode="r")
        stored: dict[str, StoredTensor] = {}
        by_hf: dict[str, GgufTensor] = {}
        for name, tensor in file.tensors.items():
            if name in _NOT_WEIGHTS:
                continue
            hf = names.get(name, name)
            kept = f"{hf}.{type_name(tensor)}"
            key = kept if kept in slots else hf
            stored[key] = _stored(key, tensor, file, data.size, blocks=key == kept)
            by_hf[key] = tensor
        heads = _permuted_heads(profile) if gguf_architecture(file).permuted else {}

        def copy(tensor: StoredTensor, slot: WeightSlot) -> None:
            rows = data[tensor.offset : tensor.offset + tensor.nbytes].reshape(tensor.shape[0], -1)
            module = whole[tensor.name].rsplit(".", 2)[-2]
            if module in heads:
                rows = _unpermute(rows, heads[module])
            if tensor.dtype == torch.uint8:
                slot.target.copy_(torch.from_numpy(np.array(rows[slot.shard])))
            else:
                _dequantise_into(slot, rows, by_hf[tensor.name].type)

        fill(model, profile, stored, copy, progress, threads=self._threads)


def type_name(tensor: GgufTensor) -> str:
    """ggml's name of a tensor's type, such as ``Q4_K``; its number where the installed package knows none."""
    try:
        return str(gguf.GGMLQuantizationType(tensor.type).name)
    except ValueError:
        return str(tensor.type)


def stored_types(profile: ModelProfile) -> Callable[[str], str | None]:
    """A function from a tensor's name in the model's spelling (``….weight``) to its type in the file, or ``None``.

    Raises :class:`CheckpointError` for a damaged file.
    """
    file = read_gguf(Path(profile.path))
    table = _name_table(file, profile)

    def type_of(name: str) -> str | None:
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        tensor = file.tensors.get(found) if found else None
        return type_name(tensor) if tensor else None

    return type_of


def _without_type(name: str, slot: WeightSlot) -> str:
    """The tensor that a slot is of."""
    return name.rpartition(".")[0] if slot.target.dtype == torch.uint8 else name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hf_names(sources: list[str], file: GgufFile, profile: ModelProfile) -> dict[str, str]:
    """GGUF tensor name to the name that the model's slots use; from the package's table of spellings."""
    table = _name_table(file, profile)
    found = {}
    for source in sources:
        name = table.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is not None:
            found[name] = source
    return found


def _name_table(file: GgufFile, profile: ModelProfile) -> Any:
    arch_of = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(arch_of[file.metadata["general.architecture"]], profile.num_layers)


def _stored(name: str, tensor: GgufTensor, file: GgufFile, size: int, *, blocks: bool) -> StoredTensor:
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.type)]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file.path}: tensor {tensor.name} has ggml type {tensor.type}, which the installed gguf package "
            "does not know; a newer one may."
        ) from error
    if not tensor.shape or tensor.shape[-1] % block:
        raise CheckpointError(f"{file.path}: tensor {tensor.name}: rows of {tensor.shape} don't hold whole blocks.")
    nbytes = int(np.prod(tensor.shape)) // block * block_bytes
    if tensor.offset + nbytes > size:
        raise CheckpointError(
            f"{file.path}: truncated inside tensor {tensor.name}: {size} bytes, but it ends at "
            f"{tensor.offset + nbytes}. Download the file again."
        )
    if blocks:
        shape = (tensor.shape[0], nbytes // tensor.shape[0])
        return StoredTensor(name, shape, torch.uint8, file.path, tensor.offset, nbytes)
    return StoredTensor(name, tensor.shape, torch.float32, file.path, tensor.offset, nbytes)


def _permuted_heads(profile: ModelProfile) -> Mapping[str, int]:
    return {"q_proj": profile.num_heads, "k_proj": profile.num_kv_heads}


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a head's rows (0, half, 1, half + 1, …), on rows still quantised."""
    count, nbytes = rows.shape
    return rows.reshape(heads, count // heads // 2, 2, nbytes).swapaxes(1, 2).reshape(count, nbytes)


def _dequantise_into(slot: WeightSlot, rows: np.ndarray, kind: int) -> None:
    """``rows`` uint8 [shape[0], bytes a row]: the whole tensor. Only the slot's slice is written."""
    width = slot.shape[1:]
    first, *others = slot.shard or (slice(None),)
    rows = rows[first]
    step = max(1, _PIECE // int(np.prod(width, dtype=np.int64)))
    write = _writer(slot.target)
    quant = gguf.GGMLQuantizationType(kind)
    for at in range(0, len(rows), step):
        piece = np.ascontiguousarray(rows[at : at + step])
        values = gguf.dequantize(piece.reshape(1, -1), quant).reshape(len(piece), *width)
        write(at, values[(slice(None), *others)])


def _writer(target: torch.Tensor) -> Callable[[int, np.ndarray], None]:
    """How to store float32 rows from row ``at`` on. Numpy where it can: torch's copy would start threads in each
    of ours."""
    if target.device.type == "cpu" and target.dtype in _NUMPY_TYPES:
        view: np.ndarray = target.detach().numpy()

        def by_numpy(at: int, values: np.ndarray) -> None:
            view[at : at + len(values)] = values

        return by_numpy

    def by_torch(at: int, values: np.ndarray) -> None:
        target[at : at + len(values)].copy_(torch.from_numpy(np.require(values, requirements=["C", "W"])))

    return by_torch
