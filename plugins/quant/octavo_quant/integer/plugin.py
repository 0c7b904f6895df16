"""Plugin `integer`: checkpoints with integer weights (GPTQ, AWQ, auto-round). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, QuantizationRecord

OCTAVO_API = (1, 0)


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
    return f"weights become {ctx.dtype} while they load" if ctx.device.type == "cpu" else ""


def _build(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.integer.config import read_settings
    from octavo_quant.integer.scheme import IntegerScheme
    from octavo_quant.stored import Stored

    return IntegerScheme(Stored(ctx.model), read_settings(ctx.model))


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute one scheme a family of checkpoints."""
    for name, summary, detect in (
        ("gptq", "GPTQ checkpoints of 2, 3, 4 and 8 bits, also with act-order.", _is_gptq),
        ("awq", "AWQ checkpoints (gemm, gemv).", _is_awq),
        ("auto-round", "auto-round's checkpoints of integers, packed as for GPTQ or AWQ.", _is_auto_round),
    ):
        yield QuantizationRecord(name=name, summary=summary, detect=detect, remark=_remark, build=_build)
