"""Compiles the attention kernels for Hopper (sm_90), which needs no GPU, and prints what each takes, as JSON lines.

Run by ``test_triton_attention.py`` and by hand: ``python tests/plugins/attention/compile_attention.py [--quick]``.
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
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from octavo_attention.kernels.decode import decode_kernel
from octavo_attention.kernels.kv_write import kv_write_kernel
from octavo_attention.kernels.prefill import prefill_kernel
from octavo_attention.kernels.prefill_hopper import prefill_hopper_kernel
from octavo_attention.launch import decode_config, prefill_config
from octavo_attention.launch_hopper import hopper_config

TYPES = {
    "float": ("query", "key", "value", "cache", "out"),
    "*fp32": ("partial", "stats"),
    "*i32": ("tables", "lengths", "starts", "work", "counters", "runs"),
    "*i64": ("slots",),
    "fp32": ("scale", "soft_cap", "key_scale", "value_scale"),
}
SIZES = {"fp8e4nv": 1, "bf16": 2, "fp16": 2, "fp32": 4}
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"


def type_of(name: str, dtype: str) -> str:
    found = next((kind for kind, names in TYPES.items() if name in names), "i32")
    return f"*{dtype}" if found == "float" else found


def compile_kernel(
    kernel: Any,
    label: str,
    dtype: str,
    constants: dict[str, Any],
    options: dict[str, Any],
    types: dict[str, str],
    cache: str | None = None,
) -> dict[str, Any]:
    """Compile as a launch would: pointers and strides divisible by 16. Returns registers, bytes and spills."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, type_of(n, dtype)) for n in names}
    if cache is not None:
        signature["cache"] = f"*{cache}"
        label = f"{label} over {cache}"
    aligned = [n for n in names if signature[n].startswith("*") or (n.endswith("stride") and n != "table_stride")]
    made = (GluonASTSource if types else ASTSource)(
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
        "wgmma": len(re.findall(r"\bHGMMA\b", code)),
    }


def layer(
    head_dim: int, group: int = 4, window: int = 0, soft_cap: bool = False, block_size: int = 16
) -> dict[str, Any]:
    return {
        "KV_HEADS": 8,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "WINDOW": window,
        "SOFT_CAP": soft_cap,
    }


def compile_write(
    head_dim: int, dtype: str = "bf16", clean: bool = True, cache: str | None = None
) -> dict[str, Any]:
    constants = {"KV_HEADS": 8, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16, "HEADS": 8, "CLEAN": clean, "PDL": True}
    constants["SCALED"] = cache is not None
    constants["DIM"] = triton.next_power_of_2(head_dim)
    return compile_kernel(kv_write_kernel, f"write {head_dim}", dtype, constants, {"num_warps": 4}, {}, cache)


def compile_decode(
    head_dim: int,
    dtype: str = "bf16",
    queries: int = 1,
    cache: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    constants = layer(head_dim, **more)
    dim = triton.next_power_of_2(head_dim)
    used = triton.next_power_of_2(queries * constants["GROUP"])
    config = decode_config(dim, SIZES[cache or dtype], 132, rows=256)
    constants |= {"QUERIES": queries, "PDL": True, "BLOCK_M": max(16, used), "USED": used, "DIM": dim}
    constants |= {"BLOCK_N": config.block_n, "PRECISION": "ieee"}
    options = {"num_warps": config.warps, "num_stages": config.stages}
    label = f"decode {head_dim} queries {queries} {more or ''}".strip()
    return compile_kernel(decode_kernel, label, dtype, constants, options, {}, cache)


def compile_prefill(head_dim: int, dtype: str = "bf16", cache: str | None = None, **more: Any) -> dict[str, Any]:
    dim = triton.next_power_of_2(head_dim)
    config = prefill_config(dim, SIZES[dtype])
    constants = layer(head_dim, **more) | {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    constants |= {"DIM": dim, "PRECISION": "ieee"}
    options = {"num_warps": config.warps, "num_stages": config.stages}
    label = f"prefill {head_dim} {more or ''}".strip()
    return compile_kernel(prefill_kernel, label, dtype, constants, options, {}, cache)


def compile_hopper(head_dim: int, dtype: str = "bf16", **more: Any) -> dict[str, Any]:
    dim = triton.next_power_of_2(head_dim)
    config = hopper_config(dim, 16384)
    constants = layer(head_dim, **more) | {"BLOCK_N": config.block_n, "STAGES": config.stages}
    layout = gl.NVMMASharedLayout(128, 16, 2)
    page = min(constants["BLOCK_SIZE"], config.block_n)
    types = {"cache": f"tensordesc<{dtype}[{page}, {dim}],{layout!r}>"}
    label = f"hopper {head_dim} {more or ''}".strip()
    return compile_kernel(prefill_hopper_kernel, label, dtype, constants, {"num_warps": 4, "maxnreg": 168}, types)


def main(quick: bool) -> None:
    for size in (64, 128):
        for one in (compile_write, compile_decode, compile_prefill, compile_hopper):
            print(json.dumps(one(size)), flush=True)
    for one in (compile_write, compile_decode, compile_prefill):
        print(json.dumps(one(128, cache="fp8e4nv")), flush=True)
    if quick:
        return
    for size in (80, 96, 192, 256):
        for one in (compile_write, compile_decode, compile_prefill, compile_hopper):
            print(json.dumps(one(size)), flush=True)
    for one in (compile_decode, compile_prefill, compile_hopper):
        for more in (
            {"window": 1024},
            {"soft_cap": True},
            {"group": 1},
            {"group": 3},
            {"group": 8},
            {"block_size": 64},
        ):
            print(json.dumps(one(128, **more)), flush=True)
        print(json.dumps(one(128, "fp16")), flush=True)
    for queries in (2, 4, 8):
        print(json.dumps(compile_decode(128, queries=queries)), flush=True)
    for size in (64, 128, 256):
        print(json.dumps(compile_decode(size, "fp32")), flush=True)
        print(json.dumps(compile_prefill(size, "fp32")), flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
