"""AWQ's layouts (Lin et al., arXiv 2306.00978), as AutoAWQ, GPTQModel and auto-round write them: 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo_quant.grouped import GroupedWeights, merged_linear, pack_merged, priced
from octavo_quant.integer.bits import unpack
from octavo_quant.stored import Stored, floats, modules_of

# Column i of eight neighbours lies in nibble _NIBBLES[i] of their word.
_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class AwqLinear:
    """A :class:`octavo.contracts.linear.LinearMethod` for version ``gemm``.

    ``qweight`` int32 [in, out / 8], ``qzeros`` int32 [groups, out / 8], both packed along the outputs with nibbles
    out of order; ``scales`` [groups, out]. ``packed``: whether weights stay packed on this device.
    """

    stored: Stored
    group_size: int
    packed: bool = True

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks, has in another shape, or what can't be divided among the ranks."""
        full = spec.full_in or spec.in_features
        group = _check_groups(self.stored, spec, self.group_size)
        why = f"a 4-bit AWQ weight in groups of {group}"
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            columns = (self.stored.shape(f"{module}.qweight") or (0, part // 8))[-1]
            self.stored.need(f"{module}.qweight", [(full, columns)], ["int32"], why)
            self.stored.need(f"{module}.qzeros", [(full // group, columns)], ["int32"], why)
            self.stored.need(f"{module}.scales", [(full // group, columns * 8)], floats(), why)

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        group = _local_group(spec, self.group_size)
        groups, axis = spec.in_features // group, _group_axis(spec, self.group_size, 0)
        words = spec.out_features // 8
        params = {
            "qweight": ParamSpec(
                shape=(spec.in_features, words),
                dtype=torch.int32,
                in_axis=0,
                out_axis=1,
                out_pack=(8, 1),
            ),
            "qzeros": ParamSpec(
                shape=(groups, words),
                dtype=torch.int32,
                in_axis=axis,
                out_axis=1,
                in_pack=(group, 1),
                out_pack=(8, 1),
            ),
            "scales": ParamSpec(
                shape=(groups, spec.out_features),
                dtype=torch.float32,
                in_axis=axis,
                out_axis=1,
                in_pack=(group, 1),
            ),
        }
        return priced(spec, params, bits=4, group=group, packed=self.packed)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> list[GroupedWeights]:
        codes, zeros = _in_order(raw["qweight"]).T, _in_order(raw["qzeros"]).T
        return _packed(spec, codes, raw["scales"].T, zeros, self.group_size)

    def apply(self, weights: list[GroupedWeights], x: Tensor, bias: Tensor | None) -> Tensor:
        return merged_linear(x, weights, bias)


@dataclass(frozen=True, slots=True)
class AwqGemvLinear:
    """A :class:`octavo.contracts.linear.LinearMethod` for version ``gemv``.

    ``qweight`` int32 [out, in / 8], ``qzeros`` int32 [out, groups / 8], packed along the inputs in order, and
    ``scales`` [out, groups]; the last two are padded along the groups. ``packed``: whether weights stay packed on
    this device.
    """

    stored: Stored
    group_size: int
    packed: bool = True

    def check(self, spec: LinearSpec) -> None:
        """Refuse what the checkpoint lacks, has in another shape, or what can't be divided among the ranks."""
        full = spec.full_in or spec.in_features
        group = _check_groups(self.stored, spec, self.group_size)
        if spec.in_features != full and group != full and _padded(full, group) * 8 != full // group:
            raise self.stored.wrong(
                f"{spec.name}.qzeros", "is padded, which ranks can't share: lower executor.tensor_parallel"
            )
        why = f"a 4-bit AWQ weight (gemv) in groups of {group}"
        for module, part in zip(modules_of(spec), spec.out_parts, strict=True):
            rows = (self.stored.shape(f"{module}.qweight") or (part,))[0]
            self.stored.need(f"{module}.qweight", [(rows, full // 8)], ["int32"], why)
            self.stored.need(f"{module}.qzeros", [(rows, _padded(full, group))], ["int32"], why)
            self.stored.need(f"{module}.scales", [(rows, _padded(full, group) * 8)], floats(), why)

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        full = spec.full_in or spec.in_features
        group, rows = full if self.group_size == -1 else self.group_size, spec.out_features
        words = _padded(full, group) * spec.in_features // full
        axis = _group_axis(spec, self.group_size, 1)
        params = {
            "qweight": ParamSpec(
                shape=(rows, spec.in_features // 8),
                dtype=torch.int32,
                out_axis=0,
                in_axis=1,
                in_pack=(8, 1),
            ),
            "qzeros": ParamSpec(
                shape=(rows, words),
                dtype=torch.int32,
                out_axis=0,
                in_axis=axis,
                in_pack=(8 * group, 1),
            ),
            "scales": ParamSpec(
                shape=(rows, words * 8),
                dtype=torch.float32,
                out_axis=0,
                in_axis=axis,
                in_pack=(group, 1),
            ),
        }
        return priced(spec, params, bits=4, group=group, packed=self.packed)

    def finalize(self, spec: LinearSpec, raw: dict[str, Tensor]) -> list[GroupedWeights]:
        groups = spec.in_features // _local_group(spec, self.group_size)
        codes = unpack(raw["qweight"], 4, 1)
        zeros = unpack(raw["qzeros"], 4, 1)[:, :groups]
        return _packed(spec, codes, raw["scales"][:, :groups], zeros, self.group_size)

    def apply(self, weights: list[GroupedWeights], x: Tensor, bias: Tensor | None) -> Tensor:
        return merged_linear(x, weights, bias)


def _in_order(words: Tensor) -> Tensor:
    """int32 [rows, out / 8] to uint8 [rows, out]."""
    codes = unpack(words, 4, 1)
    order = torch.tensor(_NIBBLES, device=words.device)
    return codes.reshape(codes.shape[0], -1, 8)[:, :, order].flatten(1)


def _packed(spec: LinearSpec, codes: Tensor, scales: Tensor, zeros: Tensor, group: int) -> list[GroupedWeights]:
    middle = bool((zeros == 8).all())
    return pack_merged(
        codes,
        scales,
        None if middle else zeros,
        None,
        spec.out_parts,
        bits=4,
        group_size=_local_group(spec, group),
        dtype=spec.dtype,
    )


def _padded(width: int, group: int) -> int:
    """Words of zero points a row in version ``gemv``: a multiple of 1, 2 or 4 for groups of 128, 64 and 32."""
    step = max(1, 128 // group)
    words = (width // group + 7) // 8
    return (words + step - 1) // step * step


def _local_group(spec: LinearSpec, group: int) -> int:
    return spec.in_features if group == -1 else min(group, spec.in_features)


def _group_axis(spec: LinearSpec, group: int, axis: int) -> int | None:
    """The axis of the groups where ranks divide it: a single group is everybody's."""
    full = spec.full_in or spec.in_features
    return None if group in (-1, full) else axis


def _check_groups(stored: Stored, spec: LinearSpec, group_size: int) -> int:
    full = spec.full_in or spec.in_features
    group = full if group_size == -1 else group_size
    if full % group:
        raise stored.wrong(f"{spec.name}.qweight", f"has {full} inputs, which groups of {group} don't divide")
    if group != full and spec.in_features % group:
        raise stored.wrong(
            f"{spec.name}.qweight",
            f"has groups of {group} inputs; a rank's share of {spec.in_features} is not a whole number of them: "
            "lower executor.tensor_parallel",
        )
    if any(part % 8 for part in spec.out_parts):
        raise stored.wrong(
            f"{spec.name}.qweight", "has outputs that don't fill whole words, at least on one of so many ranks"
        )
    return group
