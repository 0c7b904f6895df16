"""Compiles a Triton kernel for Hopper (sm_90), which needs no GPU, and says what it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"


def compile_for_hopper(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], aligned: set[str], **options: int
) -> dict[str, Any]:
    """``types`` of arguments that are not constants; pointers and those in ``aligned`` are divisible by 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    divisible = [name for name in names if signature[name].startswith("*") or name in aligned]
    made = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    compiled = triton.compile(made, target=GPUTarget("cuda", 90, 32), options=dict(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        run = {"capture_output": True, "text": True, "check": True}
        usage = subprocess.run([BIN / "cuobjdump", "-res-usage", file.name], **run)
        code = subprocess.run([BIN / "nvdisasm", file.name], **run).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": compiled.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "wgmma": len(re.findall(r"\b[HQI]GMMA\b", code)),
        "mma": len(re.findall(r"\b[HQI]MMA\b", code)),
    }
