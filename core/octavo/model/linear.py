"""Linear layers over any quantisation scheme, merged and divided among ranks by their ``ParamSpec``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor

from octavo.contracts.linear import LinearMethod, LinearSpec, ParamSpec
from octavo.contracts.lora import LoraPart, LoraSite
from octavo.contracts.model import WeightSlot
from octavo.model.parallel import shard_slice
from octavo.model.parts import Parts

Division = Literal["column", "row", "none"]


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint layer inside a merged one: its module path and whole output size.

    ``copies`` ranks share one shard: key and value heads, when there are fewer of them than ranks.
    """

    module: str
    out_features: int
    copies: int = 1


class Linear:
    """``y = x W^T + b``.

    ``column`` division splits the outputs among ranks, ``row`` the inputs (and sums the products over ranks).
    """

    def __init__(
        self, parts: Parts, modules: Sequence[Part], in_features: int, *, bias: bool, division: Division = "column"
    ) -> None:
        self._parts = parts
        self._modules = tuple(modules)
        self._division = division
        self._full_in = in_features
        ranks = parts.ranks
        local_in = ranks.divide(in_features, "in_features") if division == "row" else in_features
        self.spec = LinearSpec(
            name=self._modules[0].module,
            in_features=local_in,
            out_parts=tuple(self._local_out(part) for part in self._modules),
            bias=bias,
            dtype=parts.dtype,
            device=parts.device,
            modules=tuple(part.module for part in self._modules),
            full_in=in_features,
            in_begin=local_in * ranks.rank if division == "row" else 0,
        )
        self.method = parts.method_for(self.spec)
        self.params = dict(self.method.params(self.spec))
        self.raw = {
            name: torch.empty(
                self._stored_shape(param),
                dtype=param.dtype,
                device="meta" if param.transient else parts.device,
            )
            for name, param in self.params.items()
        }
        self._lock = Lock()
        self._transient: list[tuple[WeightSlot, int, str]] = []
        self.bias = torch.empty(self.spec.out_features, dtype=parts.dtype, device=parts.device) if bias else None
        self.weights: Any = None
        self._slots: list[WeightSlot] = []
        self._reduce = ranks.all_reduce if division == "row" and ranks.size > 1 else None
        self._lora = parts.lora.attach(self._lora_site()) if parts.lora else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._lora is not None:
            out = self.method.apply(self.weights, x, None)
            self._lora(x, out)
            out = out if self._reduce is None else self._reduce(out)
            return out if self.bias is None else out.add_(self.bias)
        if self._reduce is None:
            return self.method.apply(self.weights, x, self.bias)
        out = self._reduce(self.method.apply(self.weights, x, None))
        return out if self.bias is None else out.add_(self.bias)

    def finalize(self) -> None:
        """Let the method repack what was loaded; tensors it does not keep are freed.

        Optional tensors that the checkpoint lacked are left out. Does nothing the second time.
        """
        if self.weights is not None:
            return
        missing = {slot.source for slot in self._slots if slot.optional and not slot.loaded}
        raw = {
            name: tensor
            for name, tensor in self.raw.items()
            if not all(f"{part.module}.{name}" in missing for part in self._modules)
        }
        self.weights = self.method.finalize(self.spec, raw)
        self.raw, self._slots, self._transient = {}, [], []

    def slots(self) -> list[WeightSlot]:
        """One slot for each checkpoint tensor: every parameter of every part. Always the same ones."""
        if not self._slots:
            self._slots = self._make_slots()
        return self._slots

    def _make_slots(self) -> list[WeightSlot]:
        slots = [
            self._slot(part, index, name, param)
            for index, part in enumerate(self._modules)
            for name, param in self.params.items()
        ]
        if self.bias is not None:
            spec = ParamSpec(shape=tuple(self.bias.shape), dtype=self.bias.dtype, out_axis=0)
            slots += [self._slot(part, index, "bias", spec, self.bias) for index, part in enumerate(self._modules)]
        return slots

    def _lora_site(self) -> LoraSite:
        ranks, parts, offset = self._parts.ranks, [], 0
        for part, width in zip(self._modules, self.spec.out_parts, strict=True):
            first = ranks.rank // part.copies * width if self._division == "column" else 0
            parts.append(
                LoraPart(
                    module=part.module,
                    out_features=part.out_features,
                    out_shard=slice(first, first + width),
                    offset=offset,
                )
            )
            offset += width
        row = self._division == "row"
        return LoraSite(
            parts=tuple(parts),
            in_features=self._full_in,
            in_shard=shard_slice(self._full_in, ranks.size, ranks.rank) if row else slice(0, self._full_in),
            adds_bias=not row or ranks.rank == 0,
            dtype=self.spec.dtype,
            device=self.spec.device,
            columns=lambda start, stop: weight_columns(self.spec, self.method, self.weights, start, stop),
        )

    def _local_out(self, part: Part) -> int:
        if self._division != "column":
            return part.out_features
        shards = self._parts.ranks.size // part.copies
        if part.out_features % max(shards, 1):
            raise ValueError(f"{part.module}: {part.out_features} outputs can't be divided among {shards} ranks.")
        return part.out_features // shards

    def _stored_shape(self, param: ParamSpec) -> tuple[int, ...]:
        return (len(self._modules), *param.shape) if param.per_part else param.shape

    def _slot(self, part: Part, index: int, name: str, param: ParamSpec, store: Tensor | None = None) -> WeightSlot:
        target = self._place(self.raw[name] if store is None else store, index, param)
        shape, shard = list(target.shape), [slice(None)] * target.dim()
        if param.out_axis is not None:
            shape[param.out_axis], shard[param.out_axis] = self._out_shard(part, shape[param.out_axis], param)
        if param.in_axis is not None and self._division == "row":
            full = _packed(self._full_in, param.in_pack)
            shape[param.in_axis] = full
            shard[param.in_axis] = shard_slice(full, self._parts.ranks.size, self._parts.ranks.rank)
        slot = WeightSlot(
            source=f"{part.module}.{name}",
            shape=tuple(shape),
            shard=tuple(shard),
            target=target,
            optional=param.optional,
            exact=not param.convert,
            kept=param.kept,
        )
        if param.transient:
            self._transient.append((slot, index, name))
            slot.begin, slot.end = self._make_room, self._finalize_early
        return slot

    def _place(self, store: Tensor, index: int, param: ParamSpec) -> Tensor:
        """Where part ``index`` lies in a stored tensor. Each part's last packed element may be partly filled."""
        if param.per_part:
            return store[index]
        if param.out_axis is None:
            return store
        before = sum(_packed(size, param.out_pack) for size in self.spec.out_parts[:index])
        return store.narrow(param.out_axis, before, _packed(self.spec.out_parts[index], param.out_pack))

    def _make_room(self) -> None:
        """Memory for tensors that exist only until the layer is complete."""
        with self._lock:
            for slot, index, name in self._transient:
                if self.raw[name].device.type == "meta":
                    self.raw[name] = torch.empty_like(self.raw[name], device=self.spec.device)
                slot.target = self._place(self.raw[name], index, self.params[name])

    def _finalize_early(self) -> None:
        with self._lock:
            done = [slot for slot, _, _ in self._transient]
            if all(slot.loaded for slot in done):
                self.finalize()
                for slot in done:  # loaders hold on to slots
                    slot.target = torch.empty_like(slot.target, device="meta")

    def _out_shard(self, part: Part, local: int, param: ParamSpec) -> tuple[int, slice]:
        full = _packed(part.out_features, param.out_pack)
        if self._division != "column":
            return full, slice(0, full)
        index = self._parts.ranks.rank // part.copies
        return full, slice(index * local, (index + 1) * local)


def weight_columns(spec: LinearSpec, method: LinearMethod, weights: Any, start: int, stop: int) -> Tensor:
    """The weight for inputs ``start`` to ``stop``, [stop - start, outputs], whatever form it is stored in: what the
    layer answers where one input is 1 and all others are 0."""
    x = torch.zeros(stop - start, spec.in_features, dtype=spec.dtype, device=spec.device)
    x.diagonal(start).fill_(1)
    return method.apply(weights, x, None)


def _packed(features: int, pack: tuple[int, int]) -> int:
    """Elements that ``features`` take: ``pack`` is (features, elements), the last group may be partly filled."""
    return -(-features * pack[1] // pack[0])
