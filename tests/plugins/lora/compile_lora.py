"""Compiles the LoRA kernels for Hopper (sm_90), which needs no GPU, and prints what each takes, as JSON lines.

Run by ``test_lora_kernels.py`` and by hand: ``python tests/plugins/lora/compile_lora.py [--quick]``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo_lora.kernels import expand_kernel, shrink_kernel
from octavo_lora.launch import expand_options, rank_blocks, shrink_options, splits_of

TYPES = {"x": "T", "down": "T", "up": "T", "bias": "T", "out": "T", "low": "fp32", "gain": "fp32"}
TYPES |= {"facts": "i32", "strips": "i32", "order": "i64", "tiles": "i64"}
ALIGNED = ("inputs", "outputs", "x_stride", "out_stride", "lows", "span")
SIZES = {"bf16": 2, "fp32": 4}
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"


def compile_kernel(kernel: Any, dtype: str, constants: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """As a launch on a large model would: pointers and sizes divisible by 16. Returns registers, bytes, spills."""
    names = kernel.arg_names

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        bare = name.removesuffix("_ptr")
        return "i32" if bare == name else "*" + (dtype if TYPES[bare] == "T" else TYPES[bare])

    aligned = [name for name in names if name.endswith("_ptr") or name in ALIGNED]
    compiled = triton.compile(
        ASTSource(
            kernel,
            {name: kind(name) for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
        ),
        target=GPUTarget("cuda", 90, 32),
        options=options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tools = ["cuobjdump", "-res-usage"], ["nvdisasm"]
        usage, code = (
            subprocess.run([BIN / tool[0], *tool[1:], file.name], capture_output=True, text=True, check=True).stdout
            for tool in tools
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": compiled.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "tensor_cores": len(re.findall(r"\b(?:HGMMA|HMMA)\b", code)),
        "async_copies": len(re.findall(r"\bLDGSTS\b", code)),
        "wide": len(re.findall(r"\b(?:LDG|STG)\.E\S*\.128\b|\bLDGSTS\.E\S*\.128\b", code)),
        "narrow": len(re.findall(r"\b(?:LDG|STG)\.E\S*\.U16\b", code)),
    }


def both(dtype: str, parts: int, inputs: int, max_rank: int, block: int) -> list[dict[str, Any]]:
    """The two kernels of one layer, for tiles of ``block`` tokens."""
    low_block, up_block = rank_blocks(parts, max_rank)
    shared = {"MAX_RANK": max_rank, "SPLITS": splits_of(inputs, block, 32), "BLOCK_M": block}
    found = []
    for kernel, options, rank in (
        (shrink_kernel, shrink_options(block, SIZES[dtype]), low_block),
        (expand_kernel, expand_options(block), up_block),
    ):
        constants = {**shared, "BLOCK_R": rank, **{k: v for k, v in options.items() if k.startswith("BLOCK")}}
        constants |= {name: True for name in ("EVEN", "ALIGNED", "PDL") if name in kernel.arg_names}
        rest = {"launch_pdl": True, **{k: v for k, v in options.items() if not k.startswith("BLOCK")}}
        label = {"kernel": kernel.fn.__name__, "dtype": dtype, "parts": parts, "rank": max_rank, "block": block}
        found.append({**label, **compile_kernel(kernel, dtype, constants, rest)})
    return found


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    layers = [(3, 4096, 16), (1, 14336, 64), (2, 4096, 256)]
    for dtype in ["bf16", "fp32"][: 1 if quick else 2]:
        for layer in layers[: 1 if quick else 3]:
            for block in [16, 64] if quick else [16, 32, 64]:
                for line in both(dtype, *layer, block):
                    print(json.dumps(line), flush=True)
