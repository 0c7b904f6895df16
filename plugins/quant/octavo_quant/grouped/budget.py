"""What packed weights take, for the memory plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.grouped.packing import CONTAINERS

_META = 4  # bytes of a scale and its zero point


def priced(
    spec: LinearSpec, params: Mapping[str, ParamSpec], *, bits: int, group: int, packed: bool
) -> dict[str, ParamSpec]:
    """``params`` of a layer that is packed once it is loaded, or written out in the model's type."""
    size = spec.out_features * spec.in_features
    after = size * CONTAINERS[bits] / 8 + size / group * _META if packed else size * spec.dtype.itemsize
    stored = sum(math.prod(param.shape) * param.dtype.itemsize for param in params.values())
    return {name: replace(param, transient=True, kept=after / stored) for name, param in params.items()}
