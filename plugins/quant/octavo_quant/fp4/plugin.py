"""Plugin `modelopt-fp4`: NVFP4 checkpoints of NVIDIA's ModelOpt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, QuantizationRecord

OCTAVO_API = (1, 0)


def _detect(profile: ModelProfile) -> bool:
    config = profile.quantization or {}
    return config.get("quant_method") == "modelopt" and "FP4" in str(config.get("quant_algo"))


def _remark(ctx: Context) -> str:
    kept = "weights stay FP4, activations 16-bit" if ctx.device.type == "cuda" else f"weights become {ctx.dtype}"
    return f"nothing here multiplies FP4: {kept}"


def _build(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.fp4.modelopt import modelopt_scheme

    return modelopt_scheme(ctx)


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute the scheme ``modelopt-fp4``."""
    yield QuantizationRecord(
        name="modelopt-fp4",
        summary="NVFP4 checkpoints of NVIDIA's ModelOpt, as weights.",
        detect=_detect,
        remark=_remark,
        build=_build,
    )
