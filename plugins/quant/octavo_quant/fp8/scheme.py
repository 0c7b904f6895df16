"""Which method each layer gets, for checkpoints in FP8 and for FP8 made while loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.contracts.linear import LinearMethod, LinearSpec
from octavo.errors import CheckpointError
from octavo.records import Context
from octavo_quant.expanded import Expanded
from octavo_quant.fp8.format import Fp8Format
from octavo_quant.fp8.linear import Activations, Fp8Linear, OnlineFp8Format, OnlineFp8Linear, fits
from octavo_quant.kv import KvScaleReader
from octavo_quant.skips import Skip, listed, one_answer, skipper
from octavo_quant.stored import Stored

IGNORED = (r"\.input_scale$", r"\.output_scale$", r"\.activation_scale_ub$", r"\.input_scale_ub$")
"""Scales of activations, where they are quantised token by token all the same."""


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """A :class:`octavo.contracts.linear.QuantScheme`. ``native``: whether the device multiplies FP8."""

    form: Fp8Format
    skip: Skip
    native: bool
    kv: KvScaleReader
    upper: float | None = None
    activations: Activations = "fp8"

    @property
    def ignored_weights(self) -> Sequence[str]:
        """See :class:`octavo.contracts.linear.QuantScheme`."""
        return (*IGNORED, *self.kv.ignored)

    def kv_scales(self, module: str) -> tuple[float, float]:
        """See :class:`octavo.contracts.linear.KvScales`."""
        return self.kv.scales(module)

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        if one_answer(spec, self._left_out, "types"):
            return None
        self.form.check(spec)
        if self.native and fits(spec, self.form.block):
            return Fp8Linear(self.form, self.upper, self.activations)
        return Expanded(self.form)

    def _left_out(self, module: str) -> bool:
        """Some tools leave layers out without a word: what is stored in 16 bits is not quantised."""
        stored = self.form.stored
        if module.endswith("lm_head") and stored.dtype(f"{module}.weight") != "float8_e4m3fn":
            return True
        return self.skip(module) or (stored.known and stored.dtype(f"{module}.weight") in ("bfloat16", "float16"))


@dataclass(frozen=True, slots=True)
class OnlineFp8Scheme:
    """A :class:`octavo.contracts.linear.QuantScheme` for unquantised checkpoints."""

    method: OnlineFp8Linear
    skip: Skip
    native: bool

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        if one_answer(spec, self.skip, "types"):
            return None
        if self.native and fits(spec, None):
            return self.method
        return Expanded(OnlineFp8Format(self.method.scales))


def runs_fp8(ctx: Context) -> bool:
    """Whether the device's tensor cores multiply FP8: Ada and Hopper on."""
    return ctx.device.type == "cuda" and ctx.device.capability is not None and ctx.device.capability >= (8, 9)


def runs_kernels(ctx: Context) -> bool:
    """Whether the device runs the Triton kernels at all."""
    return ctx.device.type == "cuda" and ctx.device.capability is not None and ctx.device.capability >= (8, 0)


def checkpoint_scheme(ctx: Context, config: Mapping[str, Any], skip: Sequence[str], wide: bool) -> Fp8Scheme:
    """From a quantization_config of method ``fp8``, ``fbgemm_fp8`` or ``modelopt``; ``wide``: activations stay
    16-bit."""
    stored = Stored(ctx.model)
    where = f"{ctx.model.path}/config.json"
    block = _block(config, where)
    static = config.get("activation_scheme", "dynamic") == "static" or config.get("quant_algo") == "FP8"
    upper = config.get("activation_scale_ub")
    return Fp8Scheme(
        form=Fp8Format(stored, block, static, "weight_scale_inv" if block else "weight_scale"),
        skip=skipper([*listed(config, where), *skip]),
        native=runs_kernels(ctx),
        kv=KvScaleReader(stored),
        upper=float(upper) if isinstance(upper, (int, float)) else None,
        activations="16-bit" if wide or not runs_fp8(ctx) else "fp8",
    )


def _block(config: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    value = config.get("weight_block_size")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise CheckpointError(
            f"{where}: quantization_config.weight_block_size must be two numbers such as [128, 128], not {value!r}."
        )
    if config.get("activation_scheme", "dynamic") != "dynamic":
        raise CheckpointError(
            f"{where}: quantization_config.activation_scheme is {config['activation_scheme']!r}; with "
            "weight_block_size it must be 'dynamic'."
        )
    return value[0], value[1]
