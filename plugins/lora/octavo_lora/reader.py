"""``adapter_model.safetensors`` into host memory: every tensor is known, fits the model, and is finite.

Names and shapes are checked from the file's header before any data is read, so that a file of the wrong kind is
refused at once, however large it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.contracts.lora import LoraPart, LoraSite
from octavo.errors import CheckpointError, NotFoundError
from octavo_lora.gains import equals_base, row_gains
from octavo_lora.names import Roles, sort_names
from octavo_lora.pieces import PeftAdapter, Piece, bytes_of
from octavo_lora.settings import CONFIG_FILE, Settings, read_settings

WEIGHTS_FILE: Final = "adapter_model.safetensors"
_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_THREADS: Final = 4
_ALIGNED: Final = 64

Tensors = dict[str, Tensor]
"""By role, as they stand in the file."""


class AdapterReader:
    """Reads adapters for the sites of one model. ``most_extra`` bytes may go to what is not in linear layers."""

    def __init__(self, sites: Sequence[LoraSite], max_rank: int, most_extra: int) -> None:
        self._sites, self._max_rank, self._most_extra = sites, max_rank, most_extra
        self._places = {
            part.module: (at, index) for at, site in enumerate(sites) for index, part in enumerate(site.parts)
        }
        self._by_module = {module: sites[at] for module, (at, _) in self._places.items()}
        device = sites[0].device if sites else torch.device("cpu")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="octavo-lora")

    @torch.inference_mode()
    def read(self, path: str) -> PeftAdapter:
        """See :meth:`octavo.contracts.lora.LoraBackend.read`."""
        folder = Path(path)
        if not (folder / CONFIG_FILE).is_file():
            raise NotFoundError(f"there is no adapter at {path}: it has no {CONFIG_FILE}.", param="path")
        settings = read_settings(folder)
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise CheckpointError(_no_weights(folder))
        try:
            with safe_open(str(weights), framework="pt") as file:
                names = sort_names(file.keys(), self._by_module, settings, weights)
                for module, roles in names.items():
                    self._check(file, module, roles, settings, weights)
                with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                    return self._load(file, names, settings, weights)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{weights} can't be read, it may be truncated: {error}") from error

    def _check(self, file: Any, module: str, roles: Roles, settings: Settings, weights: Path) -> None:
        at, index = self._places[module]
        site, rank = self._sites[at], settings.rank_of(module)
        outputs, inputs = site.parts[index].out_features, site.in_features
        if "A" in roles and rank > self._max_rank:
            raise CheckpointError(
                f"{weights}: {roles['A']!r} has rank {rank}; at most {self._max_rank} is allowed here "
                f"(lora.options.max_rank)."
            )
        if "magnitude" in roles and site.in_shard != slice(0, inputs):
            raise CheckpointError(
                f"{weights}: {roles['magnitude']!r} is a DoRA magnitude of a layer whose inputs are divided among "
                f"ranks, which is not supported: merge the adapter, or serve it with executor.tensor_parallel 1."
            )
        wanted = {"A": (rank, inputs), "B": (outputs, rank), "bias": (outputs,), "magnitude": (outputs,)}
        wanted["whole"] = (inputs, outputs) if site.kind == "embedding" else (outputs, inputs)
        for role, name in roles.items():
            _check_tensor(file.get_slice(name), name, wanted[role], rank if role in "AB" else None, weights)

    def _load(self, file: Any, names: Mapping[str, Roles], settings: Settings, weights: Path) -> PeftAdapter:
        digest = hashlib.sha256(settings.canonical().encode())
        pieces: dict[tuple[int, int], Piece] = {}
        whole: dict[int, Tensor] = {}
        # A copy of its own, so that the digest is that of what is served, whatever becomes of the file.
        read = {name: file.get_tensor(name).clone() for roles in names.values() for name in roles.values()}
        for name, one in zip(read, self._threads.map(_digest, read.values()), strict=True):
            if one is None:
                raise CheckpointError(f"{weights}: {name!r} holds NaN or infinity.")
            digest.update(f"\0{name}\0{read[name].dtype}\0{tuple(read[name].shape)}\0".encode() + one)
        for module, roles in names.items():
            at, index = self._places[module]
            tensors = {role: read[name] for role, name in roles.items()}
            mine = _whole(self._sites[at], tensors)
            if mine is not None:
                whole[at] = mine
            if "A" in tensors:
                pieces[at, index] = _piece(self._sites[at], index, tensors, settings.scale_of(module), mine)
        return self._packed(digest.hexdigest(), pieces, whole, weights)

    def _packed(
        self, digest: str, pieces: Mapping[tuple[int, int], Piece], whole: Mapping[int, Tensor], weights: Path
    ) -> PeftAdapter:
        sizes = {key: sum(map(bytes_of, piece.tensors())) for key, piece in pieces.items()}
        extra = sum(map(bytes_of, whole.values()))
        extra += sum(size for (at, _), size in sizes.items() if self._sites[at].kind != "linear")
        if extra > self._most_extra:
            raise CheckpointError(
                f"{weights}: what this adapter does to embedding and output head takes {extra / 2**20:,.1f} MiB on "
                f"the device; at most {self._most_extra / 2**20:,.1f} are set aside (lora.options.extra_mib)."
            )
        pin = self._stream is not None
        return PeftAdapter(
            digest=digest,
            rank=max((piece.rank for piece in pieces.values()), default=0),
            nbytes=sum(sizes.values()) + sum(map(bytes_of, whole.values())),
            pieces=_pinned(pieces) if pin else pieces,
            whole={at: tensor.pin_memory() for at, tensor in whole.items()} if pin else whole,
        )


def _check_tensor(view: Any, name: str, wanted: tuple[int, ...], rank: int | None, weights: Path) -> None:
    shape = tuple(view.get_shape())
    if shape != wanted:
        reason = "this base model" if rank is None else f"rank {rank} (adapter_config.json) and this base model"
        raise CheckpointError(
            f"{weights}: {name!r} has the shape {list(shape)}; with {reason} it must be {list(wanted)}."
        )
    if view.get_dtype() not in _FLOATS:
        raise CheckpointError(
            f"{weights}: {name!r} is stored as {view.get_dtype()}; it must be one of {', '.join(_FLOATS)}."
        )


def _digest(tensor: Tensor) -> bytes | None:
    """Of a contiguous tensor's bytes; ``None`` where it is not finite."""
    if not bool(torch.isfinite(tensor).all()):
        return None
    return hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).digest()


def _piece(site: LoraSite, index: int, tensors: Tensors, scale: float, whole: Tensor | None) -> Piece:
    part: LoraPart = site.parts[index]
    down = tensors["A"][:, site.in_shard]
    up = tensors["B"][part.out_shard].T.float() * scale
    bias = tensors["bias"][part.out_shard].float() * scale if "bias" in tensors and site.adds_bias else None
    gain = None
    if "magnitude" in tensors:
        gain = row_gains(site, part, down, up, tensors["magnitude"][part.out_shard], whole)
        up *= gain
        bias = None if bias is None else bias * gain
    return Piece(
        down=down.to(site.dtype).contiguous(),
        up=up.to(site.dtype).contiguous(),
        bias=None if bias is None else bias.to(site.dtype).contiguous(),
        gain=gain,
    )


def _whole(site: LoraSite, tensors: Tensors) -> Tensor | None:
    """The weight that replaces the base model's; ``None`` where there is none, or it is the same: PEFT saves the
    base weight of an embedding beside its adapter."""
    if "whole" not in tensors:
        return None
    shard = site.in_shard if site.kind == "embedding" else site.parts[0].out_shard
    mine = tensors["whole"][shard].to(site.dtype).contiguous()
    return None if equals_base(site, mine) else mine


def _pinned(pieces: Mapping[tuple[int, int], Piece]) -> dict[tuple[int, int], Piece]:
    """The same in one block of memory that the device can read while the host goes on."""
    tensors = [tensor for piece in pieces.values() for tensor in piece.tensors()]
    ends = list(itertools.accumulate(-(-bytes_of(tensor) // _ALIGNED) * _ALIGNED for tensor in tensors))
    block = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=True)
    moved = {}
    for tensor, start in zip(tensors, [0, *ends], strict=False):
        place = block[start : start + bytes_of(tensor)].view(tensor.dtype).view(tensor.shape)
        moved[id(tensor)] = place.copy_(tensor)

    def placed(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else moved[id(tensor)]

    return {
        key: Piece(moved[id(piece.down)], moved[id(piece.up)], placed(piece.bias), placed(piece.gain))
        for key, piece in pieces.items()
    }


def _no_weights(folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return (
            f"{folder} has its weights in adapter_model.bin, a pickle file, which could run code and is not read: "
            f"save it again with PEFT's save_pretrained, which writes {WEIGHTS_FILE}."
        )
    return f"{folder} has no {WEIGHTS_FILE}."
