"""Which method each layer of a GPTQ, AWQ or auto-round checkpoint gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.contracts.linear import LinearMethod, LinearSpec
from octavo_quant.integer.awq import AwqGemvLinear, AwqLinear
from octavo_quant.integer.config import AWQ, AWQ_GEMV, GPTQ, Settings, SettingsOf
from octavo_quant.integer.gptq import GptqLinear
from octavo_quant.skips import one_answer
from octavo_quant.stored import Stored


@dataclass(frozen=True, slots=True)
class IntegerScheme:
    """A :class:`octavo.contracts.linear.QuantScheme`. ``packed``: whether weights stay packed on this device."""

    stored: Stored
    settings_of: SettingsOf
    packed: bool = True
    ignored_weights: Sequence[str] = (r"\.g_idx$",)

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        settings: Settings | None = one_answer(spec, self._settings, "quantisation settings")
        if settings is None:
            return None
        method = self._method(settings)
        method.check(spec)
        return method

    def _settings(self, module: str) -> Settings | None:
        """What the configuration says, except of a layer that is there in plain."""
        plain = self.stored.has(f"{module}.weight") and not self.stored.has(f"{module}.qweight")
        return None if plain else self.settings_of(module)

    def _method(self, settings: Settings) -> GptqLinear | AwqLinear | AwqGemvLinear:
        if settings.layout == AWQ:
            return AwqLinear(self.stored, settings.group_size, self.packed)
        if settings.layout == AWQ_GEMV:
            return AwqGemvLinear(self.stored, settings.group_size, self.packed)
        shifted = settings.layout == GPTQ
        size, ordered = settings.group_size, settings.ordered
        return GptqLinear(self.stored, settings.bits, size, shifted, ordered, self.packed)
