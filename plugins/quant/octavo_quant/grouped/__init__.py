"""Grouped integer weights: one form in memory for all formats, and its product. Imports torch, not triton."""

from octavo_quant.grouped.budget import priced
from octavo_quant.grouped.linear import grouped_linear
from octavo_quant.grouped.merged import merged_linear, pack_merged
from octavo_quant.grouped.weights import (
    GroupedWeights,
    dense_grouped,
    dequantise,
    pack_grouped,
    pack_table,
    unpack_grouped,
)

__all__ = [
    "GroupedWeights",
    "dense_grouped",
    "dequantise",
    "grouped_linear",
    "merged_linear",
    "pack_grouped",
    "pack_merged",
    "pack_table",
    "priced",
    "unpack_grouped",
]
