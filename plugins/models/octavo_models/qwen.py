"""Plugin `qwen`: Qwen 2 and 2.5 (biased QKV) and Qwen 3 (normed queries and keys), dense."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import ArchitectureRecord, Context

if TYPE_CHECKING:
    from octavo.contracts.model import CausalLM
    from octavo.layers import Parts

OCTAVO_API = (1, 0)


def _supports(ctx: Context) -> str | None:
    if ctx.model.config.get("use_sliding_window"):
        return "use_sliding_window is set; only full attention is supported"
    return None


def _qwen2(ctx: Context, options: NoOptions, parts: Parts) -> CausalLM:
    from octavo.layers import DecoderStyle, LlamaForCausalLM

    return LlamaForCausalLM(parts, ctx.model, ctx.max_length, DecoderStyle(qkv_bias=True, windowed=False))


def _qwen3(ctx: Context, options: NoOptions, parts: Parts) -> CausalLM:
    from octavo.layers import DecoderStyle, LlamaForCausalLM

    bias = bool(ctx.model.config.get("attention_bias", False))
    style = DecoderStyle(qkv_bias=bias, output_bias=bias, qk_norm=True, windowed=False)
    return LlamaForCausalLM(parts, ctx.model, ctx.max_length, style)


@hookimpl
def octavo_architectures() -> Iterable[ArchitectureRecord]:
    yield ArchitectureRecord(
        name="Qwen2ForCausalLM",
        summary="Qwen 2 and 2.5: Llama with biased query, key and value.",
        supports=_supports,
        build=_qwen2,
    )
    yield ArchitectureRecord(
        name="Qwen3ForCausalLM",
        summary="Qwen 3: Llama with queries and keys normed head by head.",
        supports=_supports,
        build=_qwen3,
    )
