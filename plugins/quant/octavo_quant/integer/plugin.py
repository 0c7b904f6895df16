"""Plugin `integer`: weights of a few bits, 16-bit activations: GPTQ, AWQ, auto-round, SqueezeLLM, GGUF, INT4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.config.schema import NoOptions, Section
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, NativeRecord, QuantizationRecord
from octavo_quant.native_library import LIBRARY

OCTAVO_API = (1, 0)


class Int4Options(Section):
    """How an unquantised checkpoint becomes INT4."""

    group_size: Literal[32, 64, 128] = Field(
        128, description="Neighbouring weights that share a scale and a zero point."
    )
    skip: list[str] = Field(
        ["lm_head"], description="Modules left unquantised: paths, their ends, wildcards, or `re:` and a pattern."
    )


def _method(profile: ModelProfile) -> str:
    return str((profile.quantization or {}).get("quant_method", "")).lower()


def _is_gptq(profile: ModelProfile) -> bool:
    return _method(profile) == "gptq"


def _is_awq(profile: ModelProfile) -> bool:
    return _method(profile) == "awq"


def _is_auto_round(profile: ModelProfile) -> bool:
    from octavo_quant.integer.config import packing_of

    return _method(profile) in ("auto-round", "auto_round", "intel/auto-round") and (
        packing_of(profile.quantization or {}) is not None
    )


def _remark(ctx: Context) -> str:
    if ctx.device.type != "cpu":
        return ""
    if ctx.dtype != "float32":
        return f"weights become {ctx.dtype} while they load"
    reason = LIBRARY.missing()
    return f"weights become {ctx.dtype} while they load, as {reason}" if reason else ""


def _build(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.integer.config import read_settings
    from octavo_quant.integer.scheme import IntegerScheme
    from octavo_quant.stored import Stored

    return IntegerScheme(Stored(ctx.model), read_settings(ctx.model), ctx.device.type == "cuda")


def _is_squeezellm(profile: ModelProfile) -> bool:
    return _method(profile) == "squeezellm"


def _build_squeezellm(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.integer.squeezellm import squeezellm_scheme

    return squeezellm_scheme(ctx)


def _is_gguf(profile: ModelProfile) -> bool:
    return profile.format == "gguf"


def _needs_kernels(ctx: Context) -> str | None:
    if ctx.model.format != "gguf":
        return "the model is not a .gguf file"
    if ctx.device.type != "cuda" or ctx.device.capability is None or ctx.device.capability < (8, 0):
        return "needs an NVIDIA GPU (Ampere or newer); elsewhere .gguf files are dequantised while they load"
    return None


def _build_gguf(ctx: Context, _: NoOptions) -> Any:
    from octavo.checkpoint import gguf_types
    from octavo_quant.integer.gguf import GgufScheme

    return GgufScheme(gguf_types(ctx.model), ctx.model.tied_embeddings)


def _plain_only(ctx: Context) -> str | None:
    return "the checkpoint is quantised already" if ctx.model.quantization is not None else None


def _build_int4(ctx: Context, options: Int4Options) -> Any:
    from octavo_quant.integer.online import Int4Linear, Int4Scheme
    from octavo_quant.skips import skipper

    return Int4Scheme(Int4Linear(options.group_size, ctx.device.type == "cuda"), skipper(options.skip))


@hookimpl
def octavo_native_libraries() -> Iterable[NativeRecord]:
    """What ``octavo native build`` compiles."""
    yield NativeRecord(name=LIBRARY.name, summary=LIBRARY.summary, build=LIBRARY.build, missing=LIBRARY.missing)


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute one scheme a family of checkpoints, and the one that needs none."""
    for name, summary, detect in (
        ("gptq", "GPTQ checkpoints of 2, 3, 4 and 8 bits, also with act-order.", _is_gptq),
        ("awq", "AWQ checkpoints (gemm, gemv).", _is_awq),
        ("auto-round", "auto-round's checkpoints of integers, packed as for GPTQ or AWQ.", _is_auto_round),
    ):
        yield QuantizationRecord(name=name, summary=summary, detect=detect, remark=_remark, build=_build)
    yield QuantizationRecord(
        name="squeezellm",
        summary="SqueezeLLM checkpoints: tables of 3 and 4 bits, with or without a sparse part.",
        detect=_is_squeezellm,
        remark=_remark,
        build=_build_squeezellm,
    )
    yield QuantizationRecord(
        name="int4",
        summary="INT4 weights in groups, made of 16-bit ones while loading.",
        options=Int4Options,
        automatic=False,
        supports=_plain_only,
        remark=_remark,
        build=_build_int4,
    )
    yield QuantizationRecord(
        name="gguf",
        summary="Weights of .gguf files stay in 4, 5, 6 and 8 bits (GPU).",
        detect=_is_gguf,
        supports=_needs_kernels,
        build=_build_gguf,
    )
