"""What architectures are built from: the public face of :mod:`octavo.model`. Imports torch."""

from __future__ import annotations

from octavo.model.layers import Embedding, LMHead, RMSNorm, vocab_slot, whole_slot
from octavo.model.linear import Linear, Part
from octavo.model.llama import DecoderStyle, LlamaForCausalLM
from octavo.model.parallel import Ranks
from octavo.model.parts import Parts
from octavo.model.rope import Rope
from octavo.model.unquantized import Unquantized

__all__ = [
    "DecoderStyle",
    "Embedding",
    "LMHead",
    "Linear",
    "LlamaForCausalLM",
    "Part",
    "Parts",
    "RMSNorm",
    "Ranks",
    "Rope",
    "Unquantized",
    "vocab_slot",
    "whole_slot",
]
