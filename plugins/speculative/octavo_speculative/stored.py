"""What a head's files hold, before anything is built from them."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from octavo.errors import CheckpointError


def stored_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a folder's safetensors files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                shapes[name] = tuple(file.get_slice(name).get_shape())
    if not shapes:
        raise CheckpointError(
            f"{folder}: holds no *.safetensors files. Convert pickled heads with safetensors.torch."
        )
    return shapes
