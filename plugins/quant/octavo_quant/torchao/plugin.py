"""Plugin `torchao`: checkpoints that torchao wrote as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, QuantizationRecord

OCTAVO_API = (1, 0)


def _detect(profile: ModelProfile) -> bool:
    return (profile.quantization or {}).get("quant_method") == "torchao"


def _supports(ctx: Context) -> str | None:
    if ctx.model.format == "safetensors":
        return None
    return "reads how each layer is quantised from the checkpoint's safetensors files, and there are none"


def _remark(ctx: Context) -> str:
    return "" if ctx.device.type == "cuda" else f"weights become {ctx.dtype} while they load, but for INT8 W8A8"


def _build(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.fp8.scheme import runs_fp8, runs_kernels
    from octavo_quant.stored import Stored
    from octavo_quant.torchao.scheme import TorchaoScheme, renamed

    default = ((ctx.model.quantization or {}).get("quant_type") or {}).get("default")
    dynamic = "DynamicActivation" in json.dumps(default)
    stored = renamed(Stored(ctx.model), ctx.model)
    return TorchaoScheme(stored, dynamic, runs_kernels(ctx), runs_fp8(ctx))


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute the scheme ``torchao``."""
    yield QuantizationRecord(
        name="torchao",
        summary="Checkpoints of torchao in safetensors: INT8, FP8 and unpacked INT4.",
        detect=_detect,
        supports=_supports,
        remark=_remark,
        build=_build,
    )
