"""Compiles the kernels over grouped weights for Hopper (sm_90), which needs no GPU, and prints what each takes.

Run by ``test_grouped.py`` and by hand: ``python tests/plugins/quant/compile_grouped.py [--quick] [--dump FOLDER]``.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo_quant.grouped.kernels import dequantise_kernel, product_kernel
from octavo_quant.grouped.launch import Tile, stored_tiles
from octavo_quant.grouped.packing import unit_size

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    "words_ptr": "*i32",
    "meta_ptr": "*i32",
    "perm_ptr": "*i32",
    "counter_ptr": "*i32",
    "partial_ptr": "*fp32",
}
ALIGNED = ("outputs", "width", "x_stride", "out_stride")


def compile_kernel(
    kernel: Any, label: str, dtype: str, constants: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Compile as a launch would: pointers and sizes divisible by 16. Returns registers, bytes and spills."""
    names = kernel.arg_names
    signature = {}
    for name in names:
        kind = POINTERS.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        signature[name] = "constexpr" if name in constants else kind
    aligned = [n for n in names if signature[n].startswith("*") or n in ALIGNED]
    made = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    compiled = triton.compile(made, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [BIN / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        code = subprocess.run([BIN / "nvdisasm", file.name], capture_output=True, text=True, check=True).stdout
    if "--dump" in sys.argv:
        folder = Path(sys.argv[sys.argv.index("--dump") + 1])
        name = re.sub(r"\W+", "_", f"{label} {dtype}")
        (folder / f"{name}.sass").write_text(code)
        (folder / f"{name}.ttgir").write_text(compiled.asm["ttgir"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found
    return {
        "kernel": label,
        "dtype": dtype,
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "mma": len(re.findall(r"\bHMMA\b", code)),
        "wgmma": len(re.findall(r"\bHGMMA\b", code)),
        "lines": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M)),
    }


def compile_product(
    tile: Tile, bits: int = 4, group: int = 128, zero: int = 0, dtype: str = "bf16", **more: Any
) -> dict[str, Any]:
    field = 4 if bits == 3 else bits
    constants = {"BITS": bits, "FIELD": field, "GROUP": group, "SEGMENT": math.gcd(group, unit_size(field))}
    constants |= {"ZERO": zero, "WIDE": False, "BIASED": False, "PERMUTED": False, "EVEN": True, "SWAP": tile.swap}
    constants |= {"FAST": field == 4 and zero != 2 and dtype != "fp32", "SPLIT": True, "STAGES": tile.stages}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, **more}
    shape = f"{tile.block_m}x{tile.block_n}{' swapped' if tile.swap else ''}"
    label = f"product {bits} bit g{group} z{zero} {shape} {more or ''}"
    return compile_kernel(product_kernel, label.strip(), dtype, constants, {"num_warps": tile.warps})


def compile_dequantise(bits: int, dtype: str = "bf16") -> dict[str, Any]:
    field = 4 if bits == 3 else bits
    constants = {"BITS": bits, "FIELD": field, "GROUP": 128, "ZERO": 1, "WIDE": False, "BLOCK_N": 64}
    return compile_kernel(dequantise_kernel, f"dequantise {bits} bit", dtype, constants, {"num_warps": 4})


def main(quick: bool) -> None:
    tiles = list(dict.fromkeys(rule.tile for rule in stored_tiles().rules))
    for tile in tiles[:1] if quick else tiles:
        print(json.dumps(compile_product(tile)), flush=True)
        print(json.dumps(compile_product(tile, bits=8)), flush=True)
    print(json.dumps(compile_dequantise(4)), flush=True)
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
    print(json.dumps(compile_product(tiles[0], dtype="fp16")), flush=True)
    print(json.dumps(compile_product(tiles[0], dtype="fp32")), flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
