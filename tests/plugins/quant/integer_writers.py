"""Writes integer checkpoints bit by bit, as their formats are described: the independent side of the tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Layer:
    """One quantised layer: ``codes`` [out, in], ``scales`` and ``zeros`` [out, groups], ``order`` [in]: groups."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    order: np.ndarray
    bits: int

    @property
    def weight(self) -> torch.Tensor:
        """What the layer stands for, in float64."""
        codes = self.codes.astype(np.float64)
        return torch.from_numpy((codes - self.zeros[:, self.order]) * self.scales[:, self.order].astype(np.float64))


def quantise(
    weight: torch.Tensor,
    bits: int,
    group: int,
    *,
    symmetric: bool = False,
    act_order: bool = False,
    seed: int = 0,
) -> Layer:
    """Round to the nearest step of each group's range."""
    values = weight.double().numpy()
    rows, width = values.shape
    size = width if group == -1 else group
    order = np.arange(width) // size
    if act_order:
        np.random.default_rng(seed).shuffle(order)
    most, groups = 2**bits - 1, width // size
    scales, zeros = np.zeros((rows, groups), np.float16), np.zeros((rows, groups), np.int64)
    codes = np.zeros((rows, width), np.int64)
    for g in range(groups):
        mine = values[:, order == g]
        if symmetric:
            scales[:, g] = np.maximum(np.abs(mine).max(1) * 2 / most, 1e-4)
            zeros[:, g] = 2 ** (bits - 1)
        else:
            low, high = np.minimum(mine.min(1), 0), np.maximum(mine.max(1), 0)
            scales[:, g] = np.maximum((high - low) / most, 1e-4)
            # GPTQ stores zero points less one: 0 would be written as all ones, which must survive too
            zeros[:, g] = np.clip(np.round(-low / scales[:, g].astype(np.float64)), 0, most)
        scale = scales[:, g].astype(np.float64)[:, None]
        codes[:, order == g] = np.clip(np.round(mine / scale) + zeros[:, g][:, None], 0, most)
    return Layer(codes, scales, zeros, order, bits)


def pack_rows(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[n, columns] to int32 [n * bits / 32, columns]: each column is one long number, its lowest bits first."""
    count = -(-codes.shape[0] * bits // 32)
    packed = np.zeros((count, codes.shape[1]), np.uint32)
    for column in range(codes.shape[1]):
        number = sum(int(code) << (bits * i) for i, code in enumerate(codes[:, column]))
        packed[:, column] = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(count)]
    return torch.from_numpy(packed.view(np.int32))


def gptq(layer: Layer, *, version: int = 1, with_order: bool = True) -> dict[str, torch.Tensor]:
    """GPTQ's tensors; ``version`` 1 stores zero points less one."""
    zeros = (layer.zeros - 1) % 2**layer.bits if version == 1 else layer.zeros
    tensors = {
        "qweight": pack_rows(layer.codes.T, layer.bits),
        "qzeros": pack_rows(zeros, layer.bits).T.contiguous(),
        "scales": torch.from_numpy(layer.scales.T.copy()),
    }
    if with_order:
        tensors["g_idx"] = torch.from_numpy(layer.order.astype(np.int32))
    return tensors


def awq(layer: Layer) -> dict[str, torch.Tensor]:
    """AWQ's tensors, version gemm: nibble i of a word holds column (0, 2, 4, 6, 1, 3, 5, 7)[i] of eight."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def words(matrix: np.ndarray) -> torch.Tensor:
        eights = matrix.reshape(matrix.shape[0], -1, 8)
        packed = sum(eights[:, :, column].astype(np.uint32) << np.uint32(4 * i) for i, column in enumerate(order))
        return torch.from_numpy(np.ascontiguousarray(packed, np.uint32).view(np.int32))

    return {
        "qweight": words(layer.codes.T),
        "qzeros": words(layer.zeros.T),
        "scales": torch.from_numpy(layer.scales.T.copy()),
    }


def awq_gemv(layer: Layer, padded: int) -> dict[str, torch.Tensor]:
    """AWQ's tensors, version gemv; ``padded``: words of zero points a row."""
    rows, groups = layer.zeros.shape
    zeros, scales = np.zeros((rows, padded * 8), np.int64), np.zeros((rows, padded * 8), np.float16)
    zeros[:, :groups], scales[:, :groups] = layer.zeros, layer.scales
    return {
        "qweight": pack_rows(layer.codes.T, 4).T.contiguous(),
        "qzeros": pack_rows(zeros.T, 4).T.contiguous(),
        "scales": torch.from_numpy(scales),
    }
