"""Scales of an FP8 KV cache, as checkpoints bring them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from octavo_quant.stored import Stored

_KEYS = ("{}.k_scale", "{}.k_proj.k_scale", "{}.attn.k_scale", "{}.k_proj.output_scale", "{}.kv_scale")
_VALUES = ("{}.v_scale", "{}.v_proj.v_scale", "{}.attn.v_scale", "{}.v_proj.output_scale", "{}.kv_scale")


@dataclass(frozen=True, slots=True)
class KvScaleReader:
    """Reads them from the files, under the names that tools have given them; 1 where there are none."""

    stored: Stored
    ignored: tuple[str, ...] = (r"\.[kv]_scale$", r"\.kv_scale$", r"\.[kvq]_proj\.output_scale$", r"\.q_scale$")
    _numbers: dict[str, float] = field(default_factory=dict)

    def scales(self, module: str) -> tuple[float, float]:
        """For the keys and the values of the attention layer ``module``."""
        return self._one(_KEYS, module), self._one(_VALUES, module)

    def _one(self, spellings: tuple[str, ...], module: str) -> float:
        name = self.stored.first(each.format(module) for each in spellings)
        if name is None:
            return 1.0
        if name not in self._numbers:
            self._numbers.update(self.stored.numbers(_alike(self.stored, name)))
        value = self._numbers[name]
        if not math.isfinite(value) or value <= 0:
            raise self.stored.wrong(name, f"is {value}; a scale must be greater than 0")
        return value


def _alike(stored: Stored, name: str) -> list[str]:
    """All tensors whose names end alike: every layer's are read at once, since opening a file costs more."""
    ending = name.rpartition(".")[2]
    return [each for each in stored.entries if each.endswith(f".{ending}")]
