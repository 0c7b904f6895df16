"""``adapter_model.safetensors`` into host memory: every tensor is known, fits the model, and is finite.

Names and shapes are checked from the file's header before any data is read, so that a file of the wrong kind is
refused at once, however large it is.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
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
_THREADS: Final = 8
_ALIGNED: Final = 64
_BLOCK: Final = 16 * 2**20

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

        def module(item: tuple[str, Roles]) -> _Read:
            with torch.inference_mode(), self._on_stream():
                at, index = self._places[item[0]]
                return _read_module(file, item[1], self._sites[at], index, settings.scale_of(item[0]), weights)

        reads = [self._threads.submit(module, item) for item in names.items()]
        wait(reads)  # also where one fails: the file is closed next, and nobody may be reading it then
        for name, done in zip(names, reads, strict=True):
            at, index = self._places[name]
            read = done.result()
            digest.update(read.digest)
            if read.whole is not None:
                whole[at] = read.whole
            if read.piece is not None:
                pieces[at, index] = read.piece
        return self._packed(digest.hexdigest(), pieces, whole, weights)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where the device's work is done that reading needs, beside the steps."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

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


@dataclass(frozen=True, slots=True)
class _Read:
    """One module of an adapter; ``digest`` is that of its tensors as they stand in the file."""

    digest: bytes
    piece: Piece | None
    whole: Tensor | None


def _read_module(file: Any, roles: Roles, site: LoraSite, index: int, scale: float, weights: Path) -> _Read:
    digest, tensors = hashlib.sha256(), {}
    for role, name in sorted(roles.items()):
        # A copy of its own, so that the digest is that of what is served, whatever becomes of the file.
        tensor = tensors[role] = file.get_tensor(name).clone()
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{weights}: {name!r} holds NaN or infinity.")
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    whole = _whole(site, tensors)
    piece = _piece(site, index, tensors, scale, whole) if "A" in tensors else None
    if piece is not None and site.dtype == torch.float16 and not bool(torch.isfinite(piece.up).all()):
        raise CheckpointError(f"{weights}: {roles['B']!r} times its scale is too large for float16.")
    return _Read(digest.digest(), piece, whole)


def _piece(site: LoraSite, index: int, tensors: Tensors, scale: float, whole: Tensor | None) -> Piece:
    part: LoraPart = site.parts[index]
    down, high = tensors["A"][:, site.in_shard], tensors["B"][part.out_shard]
    # In the site's own type a product with a number is rounded once, as it is on the way through float32.
    up = (high if high.dtype == site.dtype and "magnitude" not in tensors else high.float()) * scale
    bias = tensors["bias"][part.out_shard].float() * scale if "bias" in tensors and site.adds_bias else None
    gain = None
    if "magnitude" in tensors:
        gain = row_gains(site, part, down, up.T, tensors["magnitude"][part.out_shard], whole)
        up *= gain.unsqueeze(1)
        bias = None if bias is None else bias * gain
    return Piece(
        down=down.to(site.dtype).contiguous(),
        up=up.to(site.dtype).T.contiguous(),
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
    """The same in memory that the device can read while the host goes on: in blocks of one size, since that memory
    is given out by powers of two and is dear to get and to give back."""
    moved: dict[int, Tensor] = {}
    block, used = torch.empty(0, dtype=torch.uint8), 0
    for tensor in (tensor for piece in pieces.values() for tensor in piece.tensors()):
        size = bytes_of(tensor)
        if used + size > len(block):
            block, used = torch.empty(max(_BLOCK, size), dtype=torch.uint8, pin_memory=True), 0
        place = block[used : used + size].view(tensor.dtype).view(tensor.shape)
        moved[id(tensor)] = place.copy_(tensor)
        used += -(-size // _ALIGNED) * _ALIGNED

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
