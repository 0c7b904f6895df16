"""How bitsandbytes stores four-bit weights (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.bitsandbytes.state import QuantState
from octavo_quant.codebook.weights import Codes, unpack_nibbles
from octavo_quant.stored import Stored, modules_of

_STORAGE = {"uint8": torch.uint8, "int8": torch.int8, "float16": torch.float16, "bfloat16": torch.bfloat16}
_STORAGE["float32"] = torch.float32


@dataclass(frozen=True, slots=True)
class Bnb4Format:
    """A :class:`octavo_quant.codebook.linear.CodebookFormat`.

    ``weight`` [out * in / 2 bytes, 1], of any type that bytes were put into, holds codes row after row, the high
    half of a byte first. ``weight.absmax`` has a scale for each ``block`` codes in that order, float32 or,
    quantised once more, uint8: then ``weight.nested_quant_map`` float32 [256] at that number, times
    ``weight.nested_absmax`` (one for each ``nested_block``), plus an offset. ``weight.quant_map`` float32 [16] is
    the table.

    Rows may begin inside a block. Ranks that share a layer's inputs each read all of it.
    """

    stored: Stored
    states: Mapping[str, QuantState]

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        state, full = self._state(spec.name), spec.full_in or spec.in_features
        storage = _STORAGE[self.stored.dtype(f"{spec.name}.weight") or "uint8"]
        params = {
            "weight": self._flat(spec, storage, (2 * storage.itemsize, full), column=True),
            "weight.quant_map": ParamSpec(shape=(16,), dtype=torch.float32, per_part=True),
        }
        if not state.nested_block:
            params["weight.absmax"] = self._flat(spec, torch.float32, (state.block, full))
            return params
        nested = (state.block * state.nested_block, full)
        return params | {
            "weight.absmax": self._flat(spec, torch.uint8, (state.block, full)),
            "weight.nested_absmax": self._flat(spec, torch.float32, nested),
            "weight.nested_quant_map": ParamSpec(shape=(256,), dtype=torch.float32, per_part=True),
        }

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks, has in another shape, or what ranks can't share."""
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            state, full = self._state(module), spec.full_in or spec.in_features
            rows, columns = state.shape
            if columns != full:
                raise self.stored.wrong(f"{module}.weight", f"stands for {rows} x {columns}, not for {full} inputs")
            storage = self.stored.dtype(f"{module}.weight")
            size = _STORAGE[storage].itemsize if storage in _STORAGE else 1
            why = f"a four-bit weight of {rows} x {columns}"
            self.stored.need(f"{module}.weight", [(-(-rows * columns // 2 // size), 1)], list(_STORAGE), why)
            blocks = -(-rows * columns // state.block)
            kind = ["uint8"] if state.nested_block else ["float32"]
            self.stored.need(f"{module}.weight.absmax", [(blocks,)], kind, why)
            if state.nested_block:
                nested = -(-blocks // state.nested_block)
                self.stored.need(f"{module}.weight.nested_absmax", [(nested,)], ["float32"], why)
            whole = state.block * max(state.nested_block, 1)
            if part != rows and part * full % whole:
                raise self.stored.wrong(
                    f"{module}.weight.absmax",
                    f"has scales for {whole} weights that {part} of {rows} outputs cut: "
                    "lower executor.tensor_parallel",
                )

    def codes(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Codes | None:
        """See :class:`octavo_quant.codebook.linear.CodebookFormat`."""
        full, block = spec.full_in or spec.in_features, self._state(spec.name).block
        table = raw["weight.quant_map"]
        whole_rows = full % block == 0 and spec.in_begin % block == 0 and spec.in_features % block == 0
        if not whole_rows or block not in (16, 32, 64, 128) or not bool((table == table[0]).all()):
            return None
        inputs = slice(spec.in_begin // block, (spec.in_begin + spec.in_features) // block)
        scales = torch.cat([scale.view(-1, full // block) for _, scale in self._parts(spec, raw)])
        return Codes(self._codes(spec, raw), table[0], scales[:, inputs].contiguous(), block)

    def dequantise(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        full, block, rows = spec.full_in or spec.in_features, self._state(spec.name).block, []
        for index, (codes, scale) in enumerate(self._parts(spec, raw)):
            values = raw["weight.quant_map"][index][codes.long()]
            values *= scale.repeat_interleave(block)[: values.numel()]
            rows.append(values.view(-1, full))
        return torch.cat(rows)[:, spec.in_begin : spec.in_begin + spec.in_features]

    def _codes(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> Tensor:
        full = spec.full_in or spec.in_features
        codes = torch.cat([codes.view(-1, full) for codes, _ in self._parts(spec, raw)])
        return codes[:, spec.in_begin : spec.in_begin + spec.in_features].contiguous()

    def _parts(self, spec: LinearSpec, raw: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Flat codes and float32 scales of each checkpoint layer."""
        full = spec.full_in or spec.in_features
        codes, scales = raw["weight"].reshape(-1).view(torch.uint8), raw["weight.absmax"]
        found, byte, block = [], 0, 0
        nested_at = 0
        for index, (module, part) in enumerate(zip(modules_of(spec), spec.out_parts, strict=True)):
            state, numbers = self._state(module), part * full
            bytes_, blocks = -(-numbers // 2), -(-numbers // state.block)
            scale = scales[block : block + blocks]
            if state.nested_block:
                count = -(-blocks // state.nested_block)
                outer = raw["weight.nested_absmax"][nested_at : nested_at + count]
                inner = raw["weight.nested_quant_map"][index][scale.long()]
                scale = inner * outer.repeat_interleave(state.nested_block)[:blocks] + state.offset
                nested_at += count
            found.append((unpack_nibbles(codes[byte : byte + bytes_], high_first=True)[:numbers], scale))
            byte, block = byte + bytes_, block + blocks
        return found

    def _flat(self, spec: LinearSpec, dtype: torch.dtype, pack: tuple[int, int], column: bool = False) -> ParamSpec:
        """``pack[1]`` elements of the flat tensor stand for ``pack[0]`` outputs."""
        count = sum(-(-part * pack[1] // pack[0]) for part in spec.out_parts)
        shape = (count, 1) if column else (count,)
        return ParamSpec(shape=shape, dtype=dtype, out_axis=0, out_pack=pack, convert=False)

    def _state(self, module: str) -> QuantState:
        state = self.states.get(module)
        if state is None:
            raise self.stored.wrong(f"{module}.weight.quant_state", "is missing; a four-bit weight needs it")
        return state
