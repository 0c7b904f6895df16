"""Which method each layer of a compressed-tensors checkpoint gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.contracts.linear import LinearMethod, LinearSpec
from octavo.errors import CheckpointError
from octavo_quant.codebook.linear import codebook_method
from octavo_quant.compressed_tensors.config import Group, Layout, Numbers
from octavo_quant.compressed_tensors.packed import PackedIntegers
from octavo_quant.expanded import Expanded
from octavo_quant.fp4.format import MX, NV, Mxfp8Format, fp4_format
from octavo_quant.fp8.format import Fp8Format
from octavo_quant.fp8.linear import Activations, Fp8Linear, fits
from octavo_quant.fp8.scheme import IGNORED
from octavo_quant.kv import KvScaleReader
from octavo_quant.skips import one_answer
from octavo_quant.stored import Stored
from octavo_quant.w8a8.format import Int8Format
from octavo_quant.w8a8.linear import int8_method


@dataclass(frozen=True, slots=True)
class CompressedTensorsScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`. ``kernels``: the device runs Triton; ``fp8``: it multiplies
    FP8."""

    layout: Layout
    stored: Stored
    kv: KvScaleReader
    kernels: bool
    fp8: bool

    @property
    def ignored_weights(self) -> Sequence[str]:
        """See :class:`octavo.contracts.linear.QuantScheme`."""
        more = (r"\.weight_shape$", r"\.input_zero_point$", r"\.output_zero_point$", r"\.input_global_scale$")
        return (*IGNORED, *more, r"\.weight_zero_point$", *self.kv.ignored)

    def kv_scales(self, module: str) -> tuple[float, float]:
        """See :class:`octavo.contracts.linear.KvScales`."""
        return self.kv.scales(module)

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        group: Group | None = one_answer(spec, self.layout.group_of, "quantisation groups")
        if group is None or group.weights is None:
            return None
        if group.weights.kind == "float":
            return self._float(spec, group, group.weights)
        if group.inputs is None:
            return self._integers(spec, group, group.weights)
        return self._int8(spec, group, group.weights, group.inputs)

    def _float(self, spec: LinearSpec, group: Group, weights: Numbers) -> LinearMethod:
        small = (weights.bits, weights.strategy, weights.group)
        if small == (8, "group", MX):
            mx = Mxfp8Format(self.stored)
            mx.check(spec)
            return Expanded(mx)
        if small in ((4, "tensor_group", NV), (4, "group", MX)):
            form = fp4_format(self.stored, "nvfp4" if weights.group == NV else "mxfp4")
            form.check(spec)
            return codebook_method(form, spec, self.kernels)
        if weights.bits != 8 or weights.strategy not in ("tensor", "channel", "block"):
            raise self._unknown(spec, group)
        return self._fp8(spec, group, weights)

    def _fp8(self, spec: LinearSpec, group: Group, weights: Numbers) -> LinearMethod:
        inputs = group.inputs
        if inputs is not None and (inputs.kind != "float" or inputs.bits != 8):
            raise self._unknown(spec, group)
        block = (weights.block or (128, 128)) if weights.strategy == "block" else None
        static = inputs is not None and not inputs.dynamic
        form = Fp8Format(self.stored, block, static and block is None)
        form.check(spec)
        activations: Activations = "fp8" if inputs is not None and self.fp8 else "16-bit"
        return Fp8Linear(form, None, activations) if self.kernels and fits(spec, block) else Expanded(form)

    def _int8(self, spec: LinearSpec, group: Group, weights: Numbers, inputs: Numbers) -> LinearMethod:
        plain = weights.bits == 8 and weights.strategy in ("tensor", "channel")
        if not plain or inputs.kind != "int" or inputs.bits != 8:
            raise self._unknown(spec, group)
        form = Int8Format(self.stored, static=not inputs.dynamic)
        form.check(spec)
        return int8_method(form, spec, self.kernels, inputs.symmetric)

    def _integers(self, spec: LinearSpec, group: Group, weights: Numbers) -> LinearMethod:
        if weights.bits not in (2, 4, 8) or weights.strategy not in ("tensor", "channel", "group"):
            raise self._unknown(spec, group)
        method = PackedIntegers(self.stored, weights)
        method.check(spec)
        return method

    def _unknown(self, spec: LinearSpec, group: Group) -> CheckpointError:
        inputs = f", activations {group.inputs}" if group.inputs else ""
        return CheckpointError(
            f"{self.stored.path}: {spec.name} is in config_groups.{group.name} with weights {group.weights}{inputs}"
            f" (format {group.format or 'not stated'}), which no kernel or decoder here knows."
        )
