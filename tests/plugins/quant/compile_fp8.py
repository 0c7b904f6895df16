"""Compiles the FP8 kernels for Hopper and prints what each takes, as JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any

from hopper import compile_for_hopper

from octavo_quant.fp8.kernels import quantise_groups_kernel, quantise_rows_kernel, scaled_product_kernel
from octavo_quant.fp8.launch import tile_for

FLOATS = dict.fromkeys(("scales", "fixed", "weight_scales", "x_scales", "x_zeros", "sums", "partial"), "*fp32")
TYPES = {**FLOATS, "codes": "*fp8e4nv", "weight": "*fp8e4nv", "counters": "*i32", "upper": "fp32"}
SIZES = ("tokens", "outputs", "size", "x_stride", "groups", "splits", "share", "stride")
TYPES |= dict.fromkeys(SIZES, "i32")
ALIGNED = {"outputs", "size", "x_stride", "stride"}


def matmul(
    tokens: int, blocked: bool = False, wide: bool = False, whole: bool = False, dtype: str = "bf16"
) -> dict[str, Any]:
    tile = tile_for(tokens, blocked, wide)
    constants = {
        "BLOCKED": blocked,
        "WIDE": wide,
        "WHOLE": whole,
        "SHIFTED": False,
        "HAS_BIAS": False,
        "EVEN": True,
        "BLOCK_T": tile.tokens,
    }
    constants |= {"BLOCK_N": tile.outputs, "BLOCK_K": tile.inputs, "PDL": True}
    types = TYPES | {"x": f"*{dtype}" if wide else "*fp8e4nv", "bias": f"*{dtype}", "out": f"*{dtype}"}
    if whole:
        types |= {"x": "*i8", "weight": "*i8"}
    kind = [name for name, on in (("blocked", blocked), ("wide", wide), ("int8", whole)) if on]
    label = " ".join(["matmul", str(tokens), *kind, dtype])
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return {"kernel": label, **compile_for_hopper(scaled_product_kernel, types, constants, ALIGNED, **options)}


def quantise(size: int, static: bool = False) -> dict[str, Any]:
    block = min(1 << (size - 1).bit_length(), 16384)
    constants = {"STATIC": static, "BOUNDED": False, "ONCE": size <= block, "BLOCK": block, "PDL": True}
    types = TYPES | {"x": "*bf16"}
    warps = max(1, min(16, block // 512))
    found = compile_for_hopper(quantise_rows_kernel, types, constants, ALIGNED, num_warps=warps)
    return {"kernel": f"quantise {size}", **found}


def quantise_grouped() -> dict[str, Any]:
    types = TYPES | {"x": "*bf16"}
    found = compile_for_hopper(
        quantise_groups_kernel, types, {"GROUP": 128, "BLOCK": 32, "PDL": True}, ALIGNED, num_warps=4
    )
    return {"kernel": "quantise groups", **found}


def main(quick: bool) -> None:
    for tokens in (16, 64) if quick else (16, 32, 64, 8192):
        for more in ({}, {"blocked": True}, {"wide": True}, {"blocked": True, "wide": True}, {"whole": True}):
            if tokens > 64 and not more:
                continue  # cuBLAS
            print(json.dumps(matmul(tokens, **more)), flush=True)
    for size in (4096,) if quick else (4096, 14336, 28672):
        print(json.dumps(quantise(size)), flush=True)
    print(json.dumps(quantise_grouped()), flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
