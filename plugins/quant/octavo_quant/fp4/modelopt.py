"""NVIDIA ModelOpt's NVFP4 checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.contracts.linear import LinearMethod, LinearSpec
from octavo.errors import CheckpointError
from octavo.records import Context
from octavo_quant.codebook.linear import codebook_method
from octavo_quant.fp4.format import NV, Fp4Format
from octavo_quant.fp8.scheme import IGNORED, runs_kernels
from octavo_quant.kv import KvScaleReader
from octavo_quant.skips import Skip, listed, one_answer, skipper
from octavo_quant.stored import Stored


@dataclass(frozen=True, slots=True)
class ModeloptScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`."""

    form: Fp4Format
    skip: Skip
    kernels: bool
    kv: KvScaleReader

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
        return codebook_method(self.form, spec, self.kernels)

    def _left_out(self, module: str) -> bool:
        stored = self.form.stored
        plain = stored.known and stored.dtype(f"{module}.weight") not in ("uint8", None)
        return self.skip(module) or plain or (module.endswith("lm_head") and not stored.known)


def modelopt_scheme(ctx: Context) -> ModeloptScheme:
    """From a quantization_config, or hf_quant_config.json, whose ``quant_algo`` is NVFP4."""
    config = ctx.model.quantization or {}
    group = config.get("group_size", NV)
    if config.get("quant_algo") != "NVFP4" or group != NV:
        raise CheckpointError(
            f"{ctx.model.path}: quant_algo {config.get('quant_algo')!r} with groups of {group} is not supported; "
            f"of ModelOpt's four-bit formats NVFP4 with groups of {NV} is."
        )
    stored = Stored(ctx.model)
    form = Fp4Format(stored, packed="weight", whole="weight_scale_2", divides=False)
    skip = skipper(listed(config, f"{ctx.model.path}: its quantization_config"))
    return ModeloptScheme(form, skip, runs_kernels(ctx), KvScaleReader(stored))
