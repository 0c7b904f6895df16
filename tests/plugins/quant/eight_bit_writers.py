"""FP8 and INT8 checkpoints written out by their definitions, for tests. Loaded with ``runpy``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
Made = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Writer:
    """``quantise`` one module's weight; ``config`` is the checkpoint's quantization_config."""

    quantise: Callable[[str, Tensor], Made]
    config: Mapping[str, Any]
    activation_error: float = 0.0  # of the logits, where activations are quantised


def plain(weight: Tensor) -> Made:
    return {"weight": weight}, weight


def by_scale(weight: Tensor, scale: Tensor, name: str, stored: Tensor) -> Made:
    codes = (weight / scale).clamp(-448, 448).to(E4M3)
    return {"weight": codes, name: stored}, codes.double() * scale.double()


def fp8_tensor(weight: Tensor, shape: tuple[int, ...] = (), name: str = "weight_scale") -> Made:
    scale = weight.abs().max() / 448
    return by_scale(weight, scale, name, scale.reshape(shape))


def fp8_channel(weight: Tensor, shape: tuple[int, ...] = (-1, 1)) -> Made:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return by_scale(weight, scale, "weight_scale", scale.reshape(shape))


def fp8_block(weight: Tensor, name: str, size: int = 128, dtype: torch.dtype = torch.float32) -> Made:
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // size), -(-columns // size))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = weight[i * size : (i + 1) * size, j * size : (j + 1) * size]
            scale[i, j] = (block.abs().max() / 448).log2().ceil().exp2()  # powers of two: any type holds them
    wide = scale.repeat_interleave(size, 0)[:rows].repeat_interleave(size, 1)[:, :columns]
    return by_scale(weight, wide, name, scale.to(dtype))


def int8(weight: Tensor, shape: tuple[int, ...] = (-1, 1), shifted: bool = False) -> Made:
    if shifted:
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        scale = (high - low) / 255
        zero = (-128 - low / scale).round()
        codes = (weight / scale + zero).round().clamp(-128, 127)
        stored = {"weight": codes.to(torch.int8), "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
        return stored, (codes - zero).double() * scale.double()
    scale = weight.abs().amax(1, keepdim=True) / 127 if shape == (-1, 1) else weight.abs().max() / 127
    codes = (weight / scale).round().clamp(-128, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scale.reshape(shape)}, codes.double() * scale.double()


def outside_head(quantise: Callable[[Tensor], Made], **more: Tensor) -> Callable[[str, Tensor], Made]:
    def made(module: str, weight: Tensor) -> Made:
        if module == "lm_head":
            return plain(weight)
        tensors, truth = quantise(weight)
        return {**tensors, **more}, truth

    return made


def compressed(
    form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, targets: list[str] | None = None
) -> dict[str, Any]:
    group = {"targets": targets or ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
    }


def numbers(kind: str, strategy: str, bits: int = 8, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]}
STATIC = {"input_scale": torch.tensor(0.05)}
TOKEN = numbers("float", "token", dynamic=True)
INT_TOKEN = numbers("int", "token", dynamic=True)
SHIFTED_TOKEN = {**INT_TOKEN, "symmetric": False}
STATIC_INT = {"input_scale": torch.tensor([0.1]), "input_zero_point": torch.tensor([7], dtype=torch.int8)}

WRITERS = {
    "fp8 tensor": Writer(outside_head(fp8_tensor), FP8, 0.07),
    "fp8 tensor, static": Writer(outside_head(fp8_tensor, **STATIC), {**FP8, "activation_scheme": "static"}, 0.07),
    "fp8, scales [1]": Writer(outside_head(lambda w: fp8_tensor(w, (1,))), FP8, 0.07),
    "fp8 blocks": Writer(
        outside_head(lambda w: fp8_block(w, "weight_scale_inv")), {**FP8, "weight_block_size": [128, 128]}, 0.07
    ),
    "fp8 blocks, e8m0 scales": Writer(
        outside_head(lambda w: fp8_block(w, "weight_scale_inv", dtype=torch.float8_e8m0fnu)),
        {**FP8, "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        0.07,
    ),
    "fp8 blocks of 64": Writer(
        outside_head(lambda w: fp8_block(w, "weight_scale_inv", 64)), {**FP8, "weight_block_size": [64, 64]}
    ),
    "fbgemm": Writer(
        outside_head(fp8_channel),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        0.07,
    ),
    "modelopt fp8": Writer(
        outside_head(fp8_tensor, **STATIC),
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
        0.07,
    ),
    "ct fp8 tensor, static": Writer(
        outside_head(lambda w: fp8_tensor(w, (1,)), input_scale=torch.tensor([0.05])),
        compressed("float-quantized", numbers("float", "tensor"), numbers("float", "tensor")),
        0.07,
    ),
    "ct fp8 channel, token": Writer(
        outside_head(fp8_channel), compressed("float-quantized", numbers("float", "channel"), TOKEN), 0.07
    ),
    "ct fp8 weights only": Writer(
        outside_head(fp8_channel), compressed("naive-quantized", numbers("float", "channel"), None), 1e-5
    ),
    "ct fp8 blocks": Writer(
        outside_head(lambda w: fp8_block(w, "weight_scale")),
        compressed(
            "float-quantized",
            numbers("float", "block", block_structure=[128, 128]),
            numbers("float", "group", dynamic=True, group_size=128),
        ),
        0.07,
    ),
    "ct w8a8": Writer(outside_head(int8), compressed("int-quantized", numbers("int", "channel"), INT_TOKEN), 0.03),
    "ct w8a8 tensor": Writer(
        outside_head(lambda w: int8(w, (1,))),
        compressed("int-quantized", numbers("int", "tensor"), INT_TOKEN),
        0.03,
    ),
    "ct w8a8, activations shifted": Writer(
        outside_head(int8), compressed("int-quantized", numbers("int", "channel"), SHIFTED_TOKEN), 0.03
    ),
    "ct w8a8, static": Writer(
        outside_head(int8, **STATIC_INT),
        compressed("int-quantized", numbers("int", "channel"), numbers("int", "tensor", symmetric=False)),
        0.15,
    ),
    "ct w8a8, weights shifted": Writer(
        outside_head(lambda w: int8(w, shifted=True)),
        compressed("int-quantized", numbers("int", "channel", symmetric=False), INT_TOKEN),
        0.03,
    ),
}
