"""Grouped integer weights: one form in memory for all formats, and its product. Imports torch, not triton."""

from octavo_quant.grouped.linear import grouped_linear
from octavo_quant.grouped.weights import GroupedWeights, dequantise, pack_grouped, unpack_grouped

__all__ = ["GroupedWeights", "dequantise", "grouped_linear", "pack_grouped", "unpack_grouped"]
