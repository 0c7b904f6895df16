"""The quantisation slot: how the parameters of a linear layer are stored and multiplied.

A scheme describes its parameters; the core's loader slices and merges them by that description, so tensor
parallelism, merged QKV, LoRA and speculation never know the scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearSpec:
    """One linear layer ``y = x W^T + b`` as one rank holds it.

    ``out_parts`` are the output sizes of the checkpoint layers merged into it, in order (one entry if none).
    ``modules`` are their module paths in the checkpoint's spelling, ``name`` that of the first. ``full_in`` is
    what ``in_features`` is on all ranks together (0: the same), of which this rank's begin at ``in_begin``.
    """

    name: str
    in_features: int
    out_parts: tuple[int, ...]
    bias: bool
    dtype: torch.dtype
    device: torch.device
    modules: tuple[str, ...] = ()
    full_in: int = 0
    in_begin: int = 0

    @property
    def out_features(self) -> int:
        """Output size of all parts together."""
        return sum(self.out_parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSpec:
    """One stored tensor of a linear layer, as this rank holds it.

    ``out_axis`` / ``in_axis``: the axis that follows the output / input features, or ``None``. ``out_pack`` /
    ``in_pack``: features that one element of that axis stands for: 8 for eight nibbles in an int32, 128 for one
    scale a group of 128, or a fraction written as (numerator, denominator) such as (32, 3) for 3-bit words.
    A tensor without ``out_axis`` that exists once a part (a per-tensor scale) has ``per_part=True`` and gets a
    leading axis of ``len(out_parts)``. ``optional``: the checkpoint may lack it; it then stays unset.
    ``convert``: whether another floating type in the checkpoint may be converted on load.
    ``transient``: ``finalize`` keeps something smaller. The tensor then gets memory when its first part arrives,
    and ``finalize`` is called as soon as the layer's last part is in: a scheme that quantises while loading never
    holds the whole model as the checkpoint stores it. Of a layer's tensors all are transient, or none.
    ``kept``: bytes that stay after ``finalize`` for each byte read, for the memory plan.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    out_axis: int | None = None
    in_axis: int | None = None
    out_pack: tuple[int, int] = (1, 1)
    in_pack: tuple[int, int] = (1, 1)
    per_part: bool = False
    optional: bool = False
    convert: bool = True
    transient: bool = False
    kept: float = 1.0


class LinearMethod(Protocol):
    """How one linear layer is stored and applied."""

    def params(self, spec: LinearSpec) -> Mapping[str, ParamSpec]:
        """Tensor suffix in the checkpoint (``weight``, ``qweight``, ``scales`` …) to its description."""
        ...

    def finalize(self, spec: LinearSpec, raw: dict[str, torch.Tensor]) -> Any:
        """Turn the loaded tensors into what ``apply`` wants: repacked, permuted, moved. Called once.

        Tensors that are not kept in the answer are freed. The bias is not among them.
        """
        ...

    def apply(self, weights: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x`` [tokens, in_features] to [tokens, out_features] in ``x``'s dtype. Must not synchronise."""
        ...


class QuantScheme(Protocol):
    """What a quantisation record builds.

    It may also have ``ignored_weights``, regular expressions of checkpoint tensors that no layer takes because the
    scheme read them itself or has no use for them, and ``kv_scales(module)``, which see.
    """

    def method_for(self, spec: LinearSpec) -> LinearMethod | None:
        """The method for one layer, or ``None`` where this scheme leaves the layer unquantised."""
        ...


class KvScales(Protocol):
    """A scheme whose checkpoints bring scales for an 8-bit KV cache."""

    def kv_scales(self, module: str) -> tuple[float, float]:
        """What stored keys and values of the attention layer ``module`` are multiplied by when read."""
        ...


def ignored_weights(scheme: QuantScheme | None) -> Sequence[str]:
    """The scheme's ``ignored_weights``, or none."""
    return tuple(getattr(scheme, "ignored_weights", ()))


def kv_scales(scheme: QuantScheme | KvScales | None, module: str) -> tuple[float, float]:
    """The scheme's scales for an attention layer's keys and values, or 1."""
    asked = getattr(scheme, "kv_scales", None)
    return asked(module) if asked is not None else (1.0, 1.0)
