"""Compiles the kernels over grouped weights for Hopper (sm_90), which needs no GPU, and prints what each takes.

Run by ``test_grouped.py`` and by hand: ``python tests/plugins/quant/compile_grouped.py [--quick]``.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from hopper import compile_for_hopper

from octavo_quant.grouped.kernels import add_sparse_kernel, dequantise_kernel, product_kernel
from octavo_quant.grouped.launch import Tile, stored_tiles
from octavo_quant.grouped.packing import unit_size

INTEGERS = ("words_ptr", "meta_ptr", "perm_ptr", "counter_ptr", "starts_ptr", "columns_ptr")
POINTERS = dict.fromkeys(INTEGERS, "*i32") | {"partial_ptr": "*fp32", "values_ptr": "*fp32"}
ALIGNED = {"outputs", "width", "x_stride", "out_stride"}


def compile_kernel(
    kernel: Any, label: str, dtype: str, constants: dict[str, Any], **options: int
) -> dict[str, Any]:
    kinds = {n: POINTERS.get(n, f"*{dtype}" if n.endswith("_ptr") else "i32") for n in kernel.arg_names}
    took = compile_for_hopper(kernel, kinds, constants, ALIGNED, **options)
    return {"kernel": label, "dtype": dtype, "warps": options["num_warps"], **took}


def compile_product(
    tile: Tile, bits: int = 4, group: int = 128, zero: int = 0, dtype: str = "bf16", **more: Any
) -> dict[str, Any]:
    field = 4 if bits == 3 else bits
    constants = {"BITS": bits, "FIELD": field, "GROUP": group, "SEGMENT": math.gcd(group, unit_size(field))}
    constants |= {"ZERO": zero, "WIDE": False, "BIASED": False, "PERMUTED": False, "EVEN": True, "SWAP": tile.swap}
    constants |= {"FAST": field == 4 and zero != 2 and dtype != "fp32", "SPLIT": True, "STAGES": tile.stages}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "PDL": tile.early, **more}
    shape = f"{tile.block_m}x{tile.block_n}{' swapped' if tile.swap else ''}"
    label = f"product {bits} bit g{group} z{zero} {shape} {more or ''}"
    return compile_kernel(product_kernel, label.strip(), dtype, constants, num_warps=tile.warps)


def compile_dequantise(bits: int, group: int = 128, dtype: str = "bf16", **more: Any) -> dict[str, Any]:
    field = 4 if bits == 3 else bits
    constants = {"BITS": bits, "FIELD": field, "GROUP": group, "SEGMENT": math.gcd(group, unit_size(field))}
    constants |= {"ZERO": 1, "WIDE": False, "EVEN": True, "BLOCK_N": 64, "PDL": True, **more}
    label = f"dequantise {bits} bit g{group} {more or ''}".strip()
    return compile_kernel(dequantise_kernel, label, dtype, constants, num_warps=8)


def main(quick: bool) -> None:
    tiles = list(dict.fromkeys(rule.tile for rule in stored_tiles().rules))
    for tile in tiles[:1] if quick else tiles:
        print(json.dumps(compile_product(tile)), flush=True)
        print(json.dumps(compile_product(tile, bits=8)), flush=True)
    print(json.dumps(compile_dequantise(4)), flush=True)
    sparse = {"BLOCK_M": 16, "BLOCK": 64}
    print(json.dumps(compile_kernel(add_sparse_kernel, "add sparse", "bf16", sparse, num_warps=4)), flush=True)
    if quick:
        return
    for more in (
        {"group": 32},
        {"zero": 1},
        {"zero": 2, "group": 32},
        {"bits": 2},
        {"PERMUTED": True, "EVEN": False},
    ):
        print(json.dumps(compile_product(tiles[0], **more)), flush=True)
    for bits, more in ((2, {}), (8, {}), (4, {"group": 32}), (4, {"EVEN": False}), (4, {"ZERO": 3})):
        print(json.dumps(compile_dequantise(bits, **more)), flush=True)
    print(json.dumps(compile_product(tiles[0], dtype="fp16")), flush=True)
    print(json.dumps(compile_product(tiles[0], dtype="fp32")), flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
