"""FP4, MXFP8, bitsandbytes and torchao checkpoints written out by their definitions. Loaded with ``runpy``."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EIGHT = runpy.run_path(str(Path(__file__).with_name("eight_bit_writers.py")))
Writer, outside_head = EIGHT["Writer"], EIGHT["outside_head"]
compressed, numbers, E4M3 = EIGHT["compressed"], EIGHT["numbers"], EIGHT["E4M3"]
Made = tuple[dict[str, Tensor], Tensor]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.39491749,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.56261700,
        0.72295684,
        1.0,
    ]
)


def nearest(values: Tensor, table: Tensor) -> Tensor:
    return (values.double().unsqueeze(-1) - table.double()).abs().argmin(-1)


def nibbles(codes: Tensor, high_first: bool = False) -> Tensor:
    pairs = codes.to(torch.uint8).unflatten(-1, (-1, 2))
    first, second = pairs[..., 0], pairs[..., 1]
    return first << 4 | second if high_first else first | second << 4


def nvfp4(weight: Tensor, packed: str, whole: str, divides: bool) -> Made:
    rows, size = weight.shape
    top = 448 * 6 / weight.abs().max()
    groups = weight.view(rows, -1, 16)
    scale = (groups.abs().amax(2) / 6 * top).to(E4M3)
    spread = scale.double().unsqueeze(2) / top.double()
    codes = nearest(groups / spread.clamp(min=1e-9), E2M1)
    stored = {packed: nibbles(codes.view(rows, size)), "weight_scale": scale}
    stored[whole] = (top if divides else 1 / top).reshape(1 if divides else ())
    kept = stored[whole].double() if not divides else 1 / top.double()
    return stored, (E2M1[codes] * scale.double().unsqueeze(2) * kept).view(rows, size)


def powers(groups: Tensor, largest: float) -> Tensor:
    return (groups.abs().amax(2) / largest).log2().ceil()


def mxfp4(weight: Tensor) -> Made:
    rows, size = weight.shape
    groups = weight.view(rows, -1, 32)
    power = powers(groups, 6)
    codes = nearest(groups / power.exp2().unsqueeze(2), E2M1)
    stored = {"weight_packed": nibbles(codes.view(rows, size)), "weight_scale": (power + 127).to(torch.uint8)}
    return stored, (E2M1[codes] * power.double().exp2().unsqueeze(2)).view(rows, size)


def mxfp8(weight: Tensor) -> Made:
    rows, size = weight.shape
    groups = weight.view(rows, -1, 32)
    power = powers(groups, 448)
    codes = (groups / power.exp2().unsqueeze(2)).to(E4M3)
    stored = {"weight": codes.view(rows, size), "weight_scale": (power + 127).to(torch.uint8)}
    return stored, (codes.double() * power.double().exp2().unsqueeze(2)).view(rows, size)


def bnb4(
    weight: Tensor, kind: str = "nf4", block: int = 64, nested: bool = False, storage: torch.dtype = torch.uint8
) -> Made:
    table = NF4 if kind == "nf4" else (E2M1 / 6).float()
    flat = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % block)).view(-1, block)
    scale = flat.abs().amax(1)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "float32"}
    state["shape"] = list(weight.shape)
    stored = {"weight.quant_map": table}
    if nested:
        offset = float(scale.mean())
        outer = torch.nn.functional.pad(scale - offset, (0, -len(scale) % 256)).view(-1, 256)
        stored["weight.nested_absmax"] = outer.abs().amax(1)
        stored["weight.nested_quant_map"] = torch.linspace(-1, 1, 256)
        codes = nearest(outer / stored["weight.nested_absmax"].unsqueeze(1), stored["weight.nested_quant_map"])
        inner = stored["weight.nested_quant_map"][codes] * stored["weight.nested_absmax"].unsqueeze(1)
        stored["weight.absmax"] = codes.view(-1)[: len(scale)].to(torch.uint8)
        scale = inner.view(-1)[: len(scale)] + offset
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
    else:
        stored["weight.absmax"] = scale
    codes = nearest(flat / scale.unsqueeze(1), table)
    packed = nibbles(codes.view(-1)[: weight.numel()], high_first=True)
    stored["weight"] = packed.view(storage).unsqueeze(1)
    text = json.dumps(state).encode()
    stored[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    values = table[codes].double() * scale.double().unsqueeze(1)
    return stored, values.view(-1)[: weight.numel()].view(weight.shape)


def bnb8(weight: Tensor) -> Made:
    scale = weight.abs().amax(1)
    codes = (weight / scale.unsqueeze(1) * 127).round()
    stored = {"weight": codes.to(torch.int8), "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, codes.double() * scale.double().unsqueeze(1) / 127


def torchao_int(weight: Tensor, group: int, bits: int = 8) -> Made:
    rows, size = weight.shape
    groups = weight.view(rows, -1, group)
    low, high = groups.amin(2), groups.amax(2)
    half = 1 << bits - 1
    scale = (high - low) / (2 * half - 1)
    zero = (-half - low / scale).round().clamp(-half, half - 1)
    codes = (groups / scale.unsqueeze(2)).round().add(zero.unsqueeze(2)).clamp(-half, half - 1)
    stored = {"_weight_qdata": codes.view(rows, size).to(torch.int8), "_weight_scale": scale}
    stored["_weight_zero_point"] = zero.to(torch.int8)
    return stored, ((codes - zero.unsqueeze(2)).double() * scale.double().unsqueeze(2)).view(rows, size)


def torchao_int8(weight: Tensor) -> Made:
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round()
    stored = {"_weight_qdata": codes.to(torch.int8), "_weight_scale": scale}
    stored["_weight_zero_point"] = torch.zeros_like(scale, dtype=torch.int8)
    return stored, codes.double() * scale.double()


def torchao_fp8(weight: Tensor) -> Made:
    tensors, truth = EIGHT["fp8_channel"](weight)
    return {"_weight_qdata": tensors["weight"], "_weight_scale": tensors["weight_scale"]}, truth


def torchao(kind: str) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": 2, "_data": {}}}}


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
NV_IN = numbers("float", "tensor_group", 4, group_size=16, dynamic=True)
WRITERS = {
    "nvfp4": Writer(
        outside_head(
            lambda w: nvfp4(w, "weight_packed", "weight_global_scale", True), input_global_scale=torch.ones(1)
        ),
        compressed("nvfp4-pack-quantized", numbers("float", "tensor_group", 4, group_size=16), NV_IN),
    ),
    "nvfp4 weights only": Writer(
        outside_head(lambda w: nvfp4(w, "weight_packed", "weight_global_scale", True)),
        compressed("nvfp4-pack-quantized", numbers("float", "tensor_group", 4, group_size=16), None),
    ),
    "modelopt nvfp4": Writer(
        outside_head(lambda w: nvfp4(w, "weight", "weight_scale_2", False), input_scale=torch.tensor(1.0)),
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
    ),
    "mxfp4": Writer(
        outside_head(mxfp4), compressed("mxfp4-pack-quantized", numbers("float", "group", 4, group_size=32), None)
    ),
    "mxfp8": Writer(
        outside_head(mxfp8), compressed("mxfp8-quantized", numbers("float", "group", group_size=32), None)
    ),
    "nf4": Writer(outside_head(bnb4), BNB),
    "nf4, nested": Writer(outside_head(lambda w: bnb4(w, nested=True)), BNB),
    "nf4, blocks of 128": Writer(outside_head(lambda w: bnb4(w, block=128)), BNB),
    "nf4 in bfloat16": Writer(outside_head(lambda w: bnb4(w, storage=torch.bfloat16)), BNB),
    "fp4": Writer(outside_head(lambda w: bnb4(w, "fp4")), BNB),
    "bnb int8": Writer(outside_head(bnb8), {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "torchao int8": Writer(outside_head(torchao_int8), torchao("Int8WeightOnlyConfig")),
    "torchao int8, groups": Writer(outside_head(lambda w: torchao_int(w, 64)), torchao("Int8WeightOnlyConfig")),
    "torchao int4": Writer(outside_head(lambda w: torchao_int(w, 32, 4)), torchao("IntxWeightOnlyConfig")),
    "torchao fp8": Writer(outside_head(torchao_fp8), torchao("Float8WeightOnlyConfig")),
    "torchao int8, activations": Writer(
        outside_head(torchao_int8), torchao("Int8DynamicActivationInt8WeightConfig"), 0.03
    ),
}
