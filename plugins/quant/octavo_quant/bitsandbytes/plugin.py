"""Plugin `bitsandbytes`: checkpoints in NF4, FP4 and LLM.int8()."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, QuantizationRecord

OCTAVO_API = (1, 0)


def _detect(profile: ModelProfile) -> bool:
    return (profile.quantization or {}).get("quant_method") == "bitsandbytes"


def _supports(ctx: Context) -> str | None:
    if ctx.model.format == "safetensors":
        return None
    return "reads how each layer is quantised from the checkpoint's safetensors files, and there are none"


def _remark(ctx: Context) -> str:
    return "" if ctx.device.type == "cuda" else f"weights become {ctx.dtype} while they load"


def _build(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.bitsandbytes.scheme import BitsAndBytesScheme
    from octavo_quant.bitsandbytes.state import read_states
    from octavo_quant.fp8.scheme import runs_kernels
    from octavo_quant.stored import Stored

    stored = Stored(ctx.model)
    return BitsAndBytesScheme(stored, read_states(stored), runs_kernels(ctx))


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute the scheme ``bitsandbytes``."""
    yield QuantizationRecord(
        name="bitsandbytes",
        summary="Checkpoints of bitsandbytes: NF4, FP4 (also with quantised scales) and INT8, as weights.",
        detect=_detect,
        supports=_supports,
        remark=_remark,
        build=_build,
    )
