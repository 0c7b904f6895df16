"""Names of the tensors in ``adapter_model.safetensors``: which module each belongs to, and as what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from octavo.contracts.lora import LoraSite
from octavo.errors import CheckpointError, nearest
from octavo_lora.settings import Settings

_PREFIX: Final = "base_model.model."
_ROLES: Final = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".base_layer.weight": "whole",
    ".weight": "whole",
}
_PAIRS: Final = {"linear": ("A", "B"), "head": ("A", "B"), "embedding": ("embedding_A", "embedding_B")}
_WHOLE: Final = (
    "only an embedding (embed_tokens) and an output head (lm_head) can be replaced whole for one adapter: merge "
    "the adapter into the base model"
)

Roles = dict[str, str]
"""Tensor names by role: A, B, bias, magnitude, whole."""


def sort_names(
    names: Iterable[str], sites: Mapping[str, LoraSite], settings: Settings, weights: Path
) -> dict[str, Roles]:
    """Roles by module path, those of an embedding called like the others. ``sites`` by module path.

    Raises :class:`CheckpointError` for a tensor that has no place in the model, and for one that is missing.
    """
    found: dict[str, Roles] = {}
    for name in sorted(names):
        module, role = _parse(name, weights)
        _check_place(name, module, role, sites, weights)
        if role == "magnitude" and not settings.dora:
            raise CheckpointError(f"{weights}: {name!r} is a DoRA magnitude, but use_dora is not set.")
        found.setdefault(module, {})[role.removeprefix("embedding_")] = name
    if not found:
        raise CheckpointError(f"{weights} holds no tensors.")
    for module, roles in found.items():
        _check_complete(module, roles, sites[module], settings, weights)
    for saved in settings.saved:
        if not any("whole" in roles and f".{module}".endswith(f".{saved}") for module, roles in found.items()):
            raise CheckpointError(f"{weights} has no weight of {saved!r}, which modules_to_save names.")
    return found


def _parse(name: str, weights: Path) -> tuple[str, str]:
    """Module path and role of a tensor."""
    bare = name.removeprefix(_PREFIX)
    for ending, role in _ROLES.items():
        if bare.endswith(ending):
            return bare.removesuffix(ending), role
    raise CheckpointError(f"{weights}: {name!r} is not a tensor of a LoRA adapter (lora_A, lora_B).")


def _check_place(name: str, module: str, role: str, sites: Mapping[str, LoraSite], weights: Path) -> None:
    site = sites.get(module)
    if role == "whole" and (site is None or site.kind == "linear"):
        raise CheckpointError(f"{weights}: {name!r} is a whole weight of {module!r}; {_WHOLE}.")
    if site is None:
        raise CheckpointError(f"{weights}: {name!r} adapts {module!r}. {_unknown(module, sites)}")
    if role in ("A", "B", "embedding_A", "embedding_B") and role not in _PAIRS[site.kind]:
        what = "an embedding" if site.kind == "embedding" else "no embedding"
        raise CheckpointError(f"{weights}: {name!r} does not fit: {module!r} is {what} in this model.")


def _check_complete(module: str, roles: Collection[str], site: LoraSite, settings: Settings, weights: Path) -> None:
    if set(roles) == {"whole"}:
        return
    for role, ending in zip(("A", "B"), _PAIRS[site.kind], strict=True):
        if role not in roles:
            tail = "" if site.kind == "embedding" else ".weight"
            raise CheckpointError(f"{weights}: {module}.lora_{ending}{tail} is missing.")
    if settings.dora and "magnitude" not in roles:
        raise CheckpointError(f"{weights}: {module}.lora_magnitude_vector is missing, and use_dora is set.")


def _unknown(module: str, sites: Collection[str]) -> str:
    close = nearest(module, sites)
    return f"The base model has no such linear layer: was it made for another model?{close}"
