"""Plugin `int8`: dynamic INT8 linears on a CPU, made from 16- or 32-bit weights while they load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from octavo.config.schema import Section
from octavo.hookspecs import hookimpl
from octavo.records import Context, QuantizationRecord


class Int8Options(Section):
    """What stays in full precision."""

    skip: list[str] = Field(
        [], description="Regular expressions of module paths left unquantised, such as `lm_head`."
    )


def _supports(ctx: Context) -> str | None:
    if ctx.device.type != "cpu":
        return f"runs on a CPU; the device is {ctx.device.type}"
    if ctx.dtype != "float32":
        return f"needs model.dtype float32; it is {ctx.dtype}"
    if ctx.model.quantization is not None:
        return "the checkpoint is quantised already"
    return None


def _build(ctx: Context, options: Int8Options) -> Any:
    from octavo_quant.dynamic_int8 import DynamicInt8Scheme

    return DynamicInt8Scheme(options.skip)


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    yield QuantizationRecord(
        name="int8",
        summary="INT8 weights a channel, INT8 activations a token, quantised while loading (CPU).",
        options=Int8Options,
        automatic=False,
        supports=_supports,
        build=_build,
    )
