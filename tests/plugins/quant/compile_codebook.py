"""Compiles the codebook kernels for Hopper and prints what each takes, as JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any

from hopper import compile_for_hopper

from octavo_quant.codebook.kernels import codebook_decode_kernel, codebook_product_kernel

TYPES = dict.fromkeys(("table", "row_scales", "partial"), "*fp32") | {"packed": "*u8", "counters": "*i32"}
TYPES |= dict.fromkeys(("tokens", "outputs", "size", "x_stride", "groups", "splits", "share"), "i32")
TYPES |= dict.fromkeys(("x", "bias", "out"), "*bf16")
ALIGNED = {"outputs", "size", "x_stride"}
KINDS = {"float 64": (0, 64), "e4m3 16": (1, 16), "power 32": (2, 32)}


def compiled(kernel: Any, label: str, constants: dict[str, Any], name: str, **options: int) -> None:
    kind, group = KINDS[name]
    types = TYPES | {"scales": "*u8" if kind else "*fp32"}
    constants = constants | {"KIND": kind, "GROUP": group, "HAS_ROWS": kind == 1}
    found = compile_for_hopper(kernel, types, constants, ALIGNED, num_warps=4, **options)
    print(json.dumps({"kernel": f"{label} {name}", **found}), flush=True)


def main(quick: bool) -> None:
    for name in list(KINDS)[1:2] if quick else KINDS:
        for tokens in (16, 32):
            constants = {"HAS_BIAS": False, "BLOCK_T": tokens, "BLOCK_N": 64, "PDL": True}
            compiled(codebook_product_kernel, f"product {tokens}", constants, name, num_stages=4)
        compiled(codebook_decode_kernel, "decode", {"BLOCK_N": 32}, name)


if __name__ == "__main__":
    main("--quick" in sys.argv)
