"""GPTQ's layout (Frantar et al., arXiv 2210.17323), as AutoGPTQ, GPTQModel and auto-round write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.grouped import GroupedWeights, merged_linear, pack_merged, priced
from octavo_quant.integer.bits import unpack, unpack_parts
from octavo_quant.stored import Stored, floats, modules_of


@dataclass(frozen=True, slots=True)
class GptqLinear:
    """A :class:`octavo.contracts.linear.LinearMethod`.

    ``qweight`` int32 [in * bits / 32, out], packed down the inputs; ``qzeros`` int32 [groups, out * bits / 32],
    packed along the outputs; ``scales`` [groups, out]; ``g_idx`` int32 [in]: the group of each input, where groups
    are not neighbours. ``shifted``: zero points are stored less one (checkpoint_format ``gptq``; ``gptq_v2`` stores
    them as they are). ``ordered``: desc_act, groups in order of activation. ``packed``: whether weights stay
    packed on this device.
    """

    stored: Stored
    bits: int
    group_size: int
    shifted: bool
    ordered: bool
    packed: bool = True

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks, has in another shape, or what can't be divided among the ranks."""
        full = spec.full_in or spec.in_features
        group, bits = self._group(full), self.bits
        name = f"{spec.name}.qweight"
        if full % group:
            raise self.stored.wrong(name, f"has {full} inputs, which groups of {group} don't divide")
        if full * bits % 32:
            raise self.stored.wrong(name, f"has {full} inputs, which don't fill whole words of {bits}-bit codes")
        if not self._whole(spec) and spec.in_features % group:
            raise self.stored.wrong(
                name,
                f"has groups of {group} inputs; a rank's share of {spec.in_features} is not a whole number of "
                "them: lower executor.tensor_parallel",
            )
        why = f"a {bits}-bit GPTQ weight in groups of {group}"
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows = (self.stored.shape(f"{module}.qweight") or (0, part))[-1]
            self.stored.need(f"{module}.qweight", [(full * bits // 32, rows)], ["int32"], why)
            self.stored.need(f"{module}.scales", [(full // group, rows)], floats(), why)
            self.stored.need(f"{module}.qzeros", [(full // group, -(-rows * bits // 32))], ["int32"], why)
            if self.stored.has(f"{module}.g_idx"):
                self.stored.need(f"{module}.g_idx", [(full,)], ["int32"], why)

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        group, bits, rows = self._group(spec.full_in or spec.in_features), self.bits, spec.out_features
        whole = self._whole(spec)
        groups = (spec.full_in or spec.in_features) // group if whole else spec.in_features // group
        axis = None if whole else 0
        zero_words = sum(-(-part * bits // 32) for part in spec.out_parts)
        params = {
            "qweight": ParamSpec(
                shape=(spec.in_features * bits // 32, rows),
                dtype=torch.int32,
                in_axis=0,
                out_axis=1,
                in_pack=(32, bits),
            ),
            "qzeros": ParamSpec(
                shape=(groups, zero_words),
                dtype=torch.int32,
                in_axis=axis,
                out_axis=1,
                in_pack=(group, 1),
                out_pack=(32, bits),
            ),
            "scales": ParamSpec(
                shape=(groups, rows),
                dtype=torch.float32,
                in_axis=axis,
                out_axis=1,
                in_pack=(group, 1),
            ),
            **self._order(spec),
        }
        return priced(spec, params, bits=bits, group=group, packed=self.packed)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> list[GroupedWeights]:
        bits = self.bits
        codes = unpack(raw["qweight"], bits, 0).T
        zeros = unpack_parts(raw["qzeros"], bits, spec.out_parts).T
        if self.shifted:
            zeros = (zeros + 1) & (2**bits - 1)
        middle = bool((zeros == 2 ** (bits - 1)).all())
        orders = raw.get("g_idx")
        if orders is not None and spec.full_in not in (0, spec.in_features) and not self._whole(spec):
            orders = orders - orders.min()  # a rank's groups, counted from its first
        if orders is not None and not bool(((orders >= 0) & (orders < zeros.shape[1])).all()):
            raise self.stored.wrong(f"{spec.name}.g_idx", f"names groups outside of the {zeros.shape[1]} there are")
        return pack_merged(
            codes,
            raw["scales"].T,
            None if middle else zeros,
            orders,
            spec.out_parts,
            bits=bits,
            group_size=min(self._group(spec.full_in or spec.in_features), spec.in_features),
            dtype=spec.dtype,
        )

    def apply(self, weights: list[GroupedWeights], x: Tensor, bias: Tensor | None) -> Tensor:
        return merged_linear(x, weights, bias)

    def _group(self, full: int) -> int:
        return full if self.group_size == -1 else self.group_size

    def _whole(self, spec: LinearSpec) -> bool:
        """Whether each rank needs all groups: there is only one, or its inputs are of any of them."""
        full = spec.full_in or spec.in_features
        return self._group(full) == full or (self.ordered and spec.in_features != full)

    def _order(self, spec: LinearSpec) -> dict[str, ParamSpec]:
        if self.stored.known and not self.stored.has(f"{spec.name}.g_idx"):
            return {}
        return {
            "g_idx": ParamSpec(
                shape=(spec.in_features,),
                dtype=torch.int32,
                in_axis=0,
                per_part=True,
                optional=not self.stored.known,
            )
        }
