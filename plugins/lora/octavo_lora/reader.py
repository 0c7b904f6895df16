"""``adapter_model.safetensors`` into host memory: every tensor is known, fits the model, and is finite.

Names and shapes are checked from the file's header before any data is read, so that a file of the wrong kind is
refused at once, however large it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.contracts.lora import LoraPart, LoraSite
from octavo.errors import CheckpointError, NotFoundError, nearest
from octavo_lora.settings import CONFIG_FILE, Settings, read_settings

WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_ROLES: Final = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_B.bias": "bias"}
_REFUSED: Final = {
    ".lora_magnitude_vector": "a DoRA magnitude",
    ".lora_embedding_A": "an adapter of an embedding",
    ".lora_embedding_B": "an adapter of an embedding",
    ".base_layer.weight": "a whole weight of the base model",
}
_FLOATS: Final = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Piece:
    """What an adapter does to one part of a site, as this rank holds it.

    ``down`` [rank, local inputs], ``up`` [local outputs, rank] and ``bias`` [local outputs] are in the site's
    dtype; the adapter's scale is in ``up`` and ``bias``.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """A :class:`octavo.contracts.lora.HostAdapter`. ``pieces`` by site and part index."""

    digest: str
    rank: int
    nbytes: int
    pieces: Mapping[tuple[int, int], Piece]


@dataclass(frozen=True, slots=True)
class _Place:
    site: int
    part: int


class AdapterReader:
    """Reads adapters for the sites of one model."""

    def __init__(self, sites: Sequence[LoraSite], max_rank: int) -> None:
        self._sites, self._max_rank = sites, max_rank
        self._places = {
            part.module: _Place(at, index) for at, site in enumerate(sites) for index, part in enumerate(site.parts)
        }

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
                names = self._sort(file, weights)
                self._check(file, names, settings, weights)
                return self._load(file, names, settings, weights)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{weights} can't be read, it may be truncated: {error}") from error

    def _sort(self, file: Any, weights: Path) -> dict[str, dict[str, str]]:
        """Tensor names by module and role. Raises for a tensor that is not part of a linear layer's adapter."""
        found: dict[str, dict[str, str]] = {}
        for name in sorted(file.keys()):
            module, role = _parse(name, weights)
            if module not in self._places:
                raise CheckpointError(f"{weights}: {name!r} adapts {module!r}. {self._unknown(module)}")
            found.setdefault(module, {})[role] = name
        if not found:
            raise CheckpointError(f"{weights} holds no tensors.")
        for module, roles in found.items():
            for role in ("A", "B"):
                if role not in roles:
                    raise CheckpointError(f"{weights}: {module}.lora_{role}.weight is missing.")
        return found

    def _unknown(self, module: str) -> str:
        if module.rpartition(".")[2] in ("embed_tokens", "lm_head"):
            return (
                "Adapters of the embedding and of the output head are not supported, only those of linear layers."
            )
        close = nearest(module, self._places)
        return f"The base model has no such linear layer: was it made for another model?{close}"

    def _check(self, file: Any, names: Mapping[str, Mapping[str, str]], settings: Settings, weights: Path) -> None:
        for module, roles in names.items():
            place, rank = self._places[module], settings.rank_of(module)
            site = self._sites[place.site]
            outputs = site.parts[place.part].out_features
            if rank > self._max_rank:
                raise CheckpointError(
                    f"{weights}: {roles['A']!r} has rank {rank}; at most {self._max_rank} is allowed here "
                    f"(lora.options.max_rank)."
                )
            wanted = {"A": (rank, site.in_features), "B": (outputs, rank), "bias": (outputs,)}
            for role, name in roles.items():
                view = file.get_slice(name)
                shape = tuple(view.get_shape())
                if shape != wanted[role]:
                    raise CheckpointError(
                        f"{weights}: {name!r} has the shape {list(shape)}; with rank {rank} (adapter_config.json) "
                        f"and this base model it must be {list(wanted[role])}."
                    )
                if view.get_dtype() not in _FLOATS:
                    raise CheckpointError(
                        f"{weights}: {name!r} is stored as {view.get_dtype()}; "
                        f"it must be one of {', '.join(_FLOATS)}."
                    )

    def _load(
        self, file: Any, names: Mapping[str, Mapping[str, str]], settings: Settings, weights: Path
    ) -> PeftAdapter:
        digest = hashlib.sha256(settings.canonical().encode())
        pieces: dict[tuple[int, int], Piece] = {}
        for module, roles in names.items():
            whole = {role: _tensor(file, roles[role], digest, weights) for role in sorted(roles)}
            place = self._places[module]
            pieces[place.site, place.part] = _piece(
                self._sites[place.site], place.part, whole, settings.scale_of(module)
            )
        return PeftAdapter(
            digest=digest.hexdigest(),
            rank=max(settings.rank_of(module) for module in names),
            nbytes=sum(_bytes(piece) for piece in pieces.values()),
            pieces=pieces,
        )


def _parse(name: str, weights: Path) -> tuple[str, str]:
    """Module path and role of a tensor."""
    bare = name.removeprefix(_PREFIX)
    for ending, role in _ROLES.items():
        if bare.endswith(ending):
            return bare.removesuffix(ending), role
    for ending, what in _REFUSED.items():
        if bare.endswith(ending):
            raise CheckpointError(
                f"{weights}: {name!r} is {what}, which is not supported: merge the adapter into the base model."
            )
    raise CheckpointError(f"{weights}: {name!r} is not a tensor of a LoRA adapter (lora_A, lora_B).")


def _tensor(file: Any, name: str, digest: Any, weights: Path) -> Tensor:
    """A copy of its own, so that the digest is that of what is served, whatever becomes of the file."""
    tensor: Tensor = file.get_tensor(name).clone()
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{weights}: {name!r} holds NaN or infinity.")
    digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return tensor


def _piece(site: LoraSite, index: int, whole: Mapping[str, Tensor], scale: float) -> Piece:
    part: LoraPart = site.parts[index]
    bias = whole["bias"][part.out_shard] if "bias" in whole and site.adds_bias else None
    return Piece(
        down=whole["A"][:, site.in_shard].to(site.dtype).contiguous(),
        up=_scaled(whole["B"][part.out_shard], scale, site.dtype),
        bias=None if bias is None else _scaled(bias, scale, site.dtype),
    )


def _scaled(tensor: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Multiplied before it is rounded to ``dtype``."""
    return (tensor.double() * scale).to(dtype).contiguous()


def _bytes(piece: Piece) -> int:
    tensors = [piece.down, piece.up, *([] if piece.bias is None else [piece.bias])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _no_weights(folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return (
            f"{folder} has its weights in adapter_model.bin, a pickle file, which could run code and is not read: "
            f"save it again with PEFT's save_pretrained, which writes {WEIGHTS_FILE}."
        )
    return f"{folder} has no {WEIGHTS_FILE}."
