"""The small JSON texts in which bitsandbytes keeps what it knows of a four-bit layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from octavo.checkpoint import read_tensors
from octavo_quant.stored import Stored

_PREFIX = ".weight.quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True)
class QuantState:
    """``kind`` nf4 or fp4; ``block`` weights, row after row, share a scale; ``nested_block`` scales share one of
    their own (0: they are float32) and are above ``offset``."""

    kind: str
    block: int
    shape: tuple[int, int]
    nested_block: int
    offset: float


def read_states(stored: Stored) -> dict[str, QuantState]:
    """Of every four-bit layer of a checkpoint, by module."""
    names = {name: entry for name, entry in stored.entries.items() if _PREFIX in name}
    found = {}
    for name, tensor in read_tensors(names).items():
        module, _, kind = name.partition(_PREFIX)
        try:
            found[module] = _state(kind, json.loads(bytes(tensor.tolist())))
        except (ValueError, KeyError, TypeError) as error:
            raise stored.wrong(name, f"holds no description of a quantised weight ({error})") from error
    return found


def _state(kind: str, text: dict[str, Any]) -> QuantState:
    if kind not in ("nf4", "fp4"):
        raise ValueError(f"unknown kind {kind!r}")
    rows, columns = (int(size) for size in text["shape"])
    return QuantState(
        kind=kind,
        block=int(text["blocksize"]),
        shape=(rows, columns),
        nested_block=int(text.get("nested_blocksize") or 0),
        offset=float(text.get("nested_offset") or 0.0),
    )
