"""Rotary position embeddings: frequencies for each scaling kind, and the table that steps read from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.errors import CheckpointError


class Rope:
    """Cosines and sines by position, as :func:`octavo.ops.reference.rope` takes them."""

    def __init__(self, config: Mapping[str, Any], rotary_dim: int, max_length: int, device: torch.device) -> None:
        frequencies = inverse_frequencies(config, rotary_dim)
        angles = torch.outer(torch.arange(max_length, dtype=torch.float32), frequencies.float())
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), dim=1).unsqueeze(1).to(device)
        self._sin = torch.cat((-sin, sin), dim=1).unsqueeze(1).to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``positions`` int64 [tokens] to cos and sin [tokens, 1, rotary_dim] float32."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)


def inverse_frequencies(config: Mapping[str, Any], rotary_dim: int) -> Tensor:
    """float32 [rotary_dim / 2], from a Hugging Face config in its older or newer spelling.

    Kinds: ``default``, ``linear``, ``llama3`` (Llama 3.1's smooth interpolation) and ``gguf_factors`` (llama.cpp's
    ``rope_freqs`` divisors). Raises :class:`CheckpointError` naming any other.
    """
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    base = 1.0 / (theta**exponents)
    if kind == "default":
        return base
    if kind == "linear":
        return base / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(base, scaling)
    if kind == "gguf_factors":
        return base / torch.tensor(scaling["factors"], dtype=torch.float32)
    raise CheckpointError(
        f"config.json: rope type {kind!r} is not known to this architecture; "
        "known are default, linear, llama3 and gguf_factors."
    )


def _llama3(base: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / base
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * base / factor + smooth * base
    out = torch.where(wavelength > original / low, base / factor, blended)
    return torch.where(wavelength < original / high, base, out)
