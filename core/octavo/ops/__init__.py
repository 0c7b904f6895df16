"""Fused operations of a decoder layer, behind one frozen set of plain functions.

:mod:`octavo.ops.reference` is the meaning, the default and the test oracle of every operation. Plugins contribute
faster implementations as :class:`octavo.records.OpRecord`; which one runs is chosen once, while an engine is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from octavo.errors import PluginError, nearest
from octavo.ops import noise, reference


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations an engine is built with.

    Signatures and meanings: :mod:`octavo.ops.reference`; of ``draw``: :mod:`octavo.ops.noise`.
    """

    rms_norm: Callable[..., Any] = reference.rms_norm
    add_rms_norm: Callable[..., Any] = reference.add_rms_norm
    silu_mul: Callable[..., Any] = reference.silu_mul
    rope: Callable[..., Any] = reference.rope
    qk_norm_rope: Callable[..., Any] = reference.qk_norm_rope
    linear: Callable[..., Any] = reference.linear
    draw: Callable[..., Any] = noise.draw
    mask_logits: Callable[..., Any] = reference.mask_logits


def build_ops(implementations: Mapping[str, Callable[..., Any]]) -> Ops:
    """The reference set with ``implementations`` (operation name to function) put in its place."""
    known = [field.name for field in fields(Ops)]
    for name in implementations:
        if name not in known:
            raise PluginError(f"There is no operation {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return Ops(**implementations)
