"""Plugin `fp8`: checkpoints in FP8, and FP8 made of 16-bit checkpoints while they load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.config.schema import Section
from octavo.errors import ConfigError
from octavo.hookspecs import hookimpl
from octavo.records import Context, ModelProfile, QuantizationRecord

OCTAVO_API = (1, 0)
_METHODS = ("fp8", "fbgemm_fp8")


class Fp8Options(Section):
    """How an unquantised checkpoint becomes FP8; of a quantised one only ``skip`` may be set."""

    weights: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="Scales of the weights: one an output, or one a layer of the checkpoint."
    )
    activations: Literal["per_token", "none"] = Field(
        "per_token", description="Activations: FP8 with a scale a token, or left as they are (weights only)."
    )
    skip: list[str] = Field(
        ["lm_head"], description="Modules left unquantised: paths, their ends, wildcards, or `re:` and a pattern."
    )


def _detect(profile: ModelProfile) -> bool:
    config = profile.quantization or {}
    if config.get("quant_method") == "modelopt":
        return config.get("quant_algo") == "FP8"
    return config.get("quant_method") in _METHODS


def _remark(ctx: Context) -> str:
    capability = ctx.device.capability
    if ctx.device.type != "cuda" or capability is None or capability < (8, 0):
        return f"nothing here computes in FP8: weights become {ctx.dtype} while they load"
    if capability < (8, 9):
        return "this GPU does not multiply FP8: weights stay FP8, activations 16-bit"
    return ""


def _build(ctx: Context, options: Fp8Options) -> Any:
    from octavo_quant.fp8.linear import OnlineFp8Linear
    from octavo_quant.fp8.scheme import OnlineFp8Scheme, checkpoint_scheme, runs_fp8, runs_kernels
    from octavo_quant.skips import skipper

    if ctx.model.quantization is not None:
        if "weights" in options.model_fields_set:
            raise ConfigError("is decided by the checkpoint, which is FP8 already.", "quantization.options.weights")
        skip = options.skip if "skip" in options.model_fields_set else []
        return checkpoint_scheme(ctx, ctx.model.quantization, skip, options.activations == "none")
    wide = options.activations == "none" or not runs_fp8(ctx)
    method = OnlineFp8Linear(
        "tensor" if options.weights == "per_tensor" else "channel", "16-bit" if wide else "fp8"
    )
    return OnlineFp8Scheme(method, skipper(options.skip), runs_kernels(ctx))


@hookimpl
def octavo_quantizations() -> Iterable[QuantizationRecord]:
    """Contribute the scheme ``fp8``."""
    yield QuantizationRecord(
        name="fp8",
        summary="FP8 weights and activations: checkpoints (also fbgemm's and in blocks), or made while loading.",
        options=Fp8Options,
        detect=_detect,
        remark=_remark,
        build=_build,
    )
