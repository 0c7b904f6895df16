"""Plugin `compressed-tensors`: checkpoints that llm-compressor and compressed-tensors wrote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, QuantizationRecord

OCTAVO_API = (1, 0)


def _detect(profile: ModelProfile) -> bool:
    return (profile.quantization or {}).get("quant_method") == "compressed-tensors"


def _remark(ctx: Context) -> str:
    if ctx.device.type == "cuda":
        return ""
    return f"on a CPU INT8 stays INT8; other weights become {ctx.dtype} while they load"


def _build(ctx: Context, _: NoOptions) -> Any:
    from octavo_quant.compressed_tensors.config import read_layout
    from octavo_quant.compressed_tensors.scheme import CompressedTensorsScheme
    from octavo_quant.fp8.scheme import runs_fp8, runs_kernels
    from octavo_quant.kv import KvScaleReader
    from octavo_quant.stored import Stored

    stored = Stored(ctx.model)
    layout = read_layout(ctx.model.quantization or {}, f"{ctx.model.path}/config.json")
    return CompressedTensorsScheme(layout, stored, KvScaleReader(stored), runs_kernels(ctx), runs_fp8(ctx))


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute the scheme ``compressed-tensors``."""
    yield QuantizationRecord(
        name="compressed-tensors",
        summary="Checkpoints of compressed-tensors: FP8, INT8 W8A8, packed INT4 and INT8, NVFP4, MXFP4, MXFP8.",
        detect=_detect,
        remark=_remark,
        build=_build,
    )
