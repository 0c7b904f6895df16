"""The small layers: norm, embedding, language-model head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.contracts.linear import LinearSpec, ParamSpec
from octavo.contracts.lora import LoraPart, LoraSite
from octavo.contracts.model import WeightSlot
from octavo.model.linear import weight_columns
from octavo.model.parallel import shard_slice
from octavo.model.parts import Parts
from octavo.model.unquantized import Unquantized


class RMSNorm:
    """Root-mean-square norm; with a residual, adds to it first (in place)."""

    def __init__(self, parts: Parts, name: str, size: int, eps: float) -> None:
        self.name, self.eps = name, eps
        self.weight = torch.empty(size, dtype=parts.dtype, device=parts.device)
        self._norm, self._add_norm = parts.ops.rms_norm, parts.ops.add_rms_norm

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = (
            self._norm(x, self.weight, self.eps)
            if residual is None
            else self._add_norm(x, residual, self.weight, self.eps)
        )
        return out

    def slots(self) -> list[WeightSlot]:
        return [whole_slot(f"{self.name}.weight", self.weight)]


class Embedding:
    """Token embedding, its vocabulary divided among ranks."""

    def __init__(self, parts: Parts, name: str, vocab_size: int, size: int) -> None:
        self.name, self.vocab_size, self._ranks = name, vocab_size, parts.ranks
        self._shard = shard_slice(vocab_size, parts.ranks.size, parts.ranks.rank)
        rows = -(-vocab_size // parts.ranks.size)
        self.weight = torch.zeros(rows, size, dtype=parts.dtype, device=parts.device)
        self._lora = parts.lora.attach(self._lora_site(size)) if parts.lora else None

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self._ranks.size == 1:
            rows = self.weight.index_select(0, token_ids)
        else:
            local = token_ids - self._shard.start
            outside = (local < 0) | (token_ids >= self._shard.stop)
            rows = self.weight.index_select(0, local.masked_fill(outside, 0)).masked_fill_(outside.unsqueeze(-1), 0)
        if self._lora is not None:
            self._lora(token_ids, rows)
        return self._ranks.all_reduce(rows)

    def _lora_site(self, size: int) -> LoraSite:
        return LoraSite(
            parts=(LoraPart(module=self.name, out_features=size, out_shard=slice(0, size), offset=0),),
            in_features=self.vocab_size,
            in_shard=self._shard,
            adds_bias=self._ranks.rank == 0,
            dtype=self.weight.dtype,
            device=self.weight.device,
            columns=lambda start, stop: self.weight[start:stop],
            kind="embedding",
        )

    def slots(self) -> list[WeightSlot]:
        return [vocab_slot(f"{self.name}.weight", self.weight, self.vocab_size, self._shard)]


class LMHead:
    """Hidden states to float32 logits over the whole vocabulary; shares the embedding's weight where tied.

    The vocabulary is divided among ranks, and the last rank's share may be partly filled. Raises ``ValueError``
    where a scheme packs neighbouring tokens and the ranks' shares are no whole number of packs.
    """

    def __init__(self, parts: Parts, name: str, vocab_size: int, size: int, tied: Embedding | None) -> None:
        self._ranks, self._vocab_size, self._tied = parts.ranks, vocab_size, tied
        self._shard = shard_slice(vocab_size, parts.ranks.size, parts.ranks.rank)
        rows = -(-vocab_size // parts.ranks.size)
        self.spec = LinearSpec(
            name=name, in_features=size, out_parts=(rows,), bias=False, dtype=parts.dtype, device=parts.device
        )
        self.method = parts.method_for(self.spec)
        self.params = dict(self.method.params(self.spec))
        self.raw = {} if tied else {key: self._empty(param) for key, param in self.params.items()}
        self.weights: Any = None
        self._slots: list[WeightSlot] = []
        self._lora = parts.lora.attach(self._lora_site()) if parts.lora else None

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._lora is None and isinstance(self.method, Unquantized):
            logits = self.method.apply(self.weights, hidden, None, torch.float32)
        else:
            logits = self.method.apply(self.weights, hidden, None)
        if self._lora is not None:
            self._lora(hidden, logits)
        return self._ranks.gather_last(logits)[:, : self._vocab_size].float()

    def _lora_site(self) -> LoraSite:
        part = LoraPart(module=self.spec.name, out_features=self._vocab_size, out_shard=self._shard, offset=0)
        return LoraSite(
            parts=(part,),
            in_features=self.spec.in_features,
            in_shard=slice(0, self.spec.in_features),
            adds_bias=True,
            dtype=self.spec.dtype,
            device=self.spec.device,
            columns=lambda start, stop: weight_columns(self.spec, self.method, self.weights, start, stop),
            kind="head",
        )

    def slots(self) -> list[WeightSlot]:
        if not self._slots:
            self._slots = [self._slot(key, tensor, self.params[key]) for key, tensor in self.raw.items()]
        return self._slots

    def finalize(self) -> None:
        """Repack, from the embedding where tied. Optional tensors that the checkpoint lacked are left out."""
        missing = {slot.source for slot in self._slots if slot.optional and not slot.loaded}
        raw = {key: tensor for key, tensor in self.raw.items() if f"{self.spec.name}.{key}" not in missing}
        self.weights = self.method.finalize(self.spec, {"weight": self._tied.weight} if self._tied else raw)
        self.raw, self._slots = {}, []

    def _slot(self, key: str, tensor: Tensor, param: ParamSpec) -> WeightSlot:
        source = f"{self.spec.name}.{key}"
        target = tensor[0] if param.per_part else tensor
        shape, shard = list(target.shape), [slice(None)] * target.dim()
        if param.out_axis is not None:
            features, elements = param.out_pack
            if self._ranks.size > 1 and self.spec.out_features * elements % features:
                raise ValueError(
                    f"{source}: {self._vocab_size} tokens can't be divided among {self._ranks.size} ranks, since "
                    "neighbours are packed together."
                )
            bounds = [-(-at * elements // features) for at in (self._shard.start, self._shard.stop)]
            shape[param.out_axis] = -(-self._vocab_size * elements // features)
            shard[param.out_axis] = slice(*bounds)
            target = target.narrow(param.out_axis, 0, bounds[1] - bounds[0])
        return WeightSlot(
            source=source,
            shape=tuple(shape),
            shard=tuple(shard),
            target=target,
            optional=param.optional,
            exact=not param.convert,
            kept=param.kept,
        )

    def _empty(self, param: ParamSpec) -> Tensor:
        shape = (1, *param.shape) if param.per_part else param.shape
        return torch.zeros(shape, dtype=param.dtype, device=self.spec.device)


def whole_slot(source: str, target: Tensor) -> WeightSlot:
    """A tensor that every rank holds whole."""
    shape = tuple(target.shape)
    return WeightSlot(source=source, shape=shape, shard=(slice(None),) * len(shape), target=target)


def vocab_slot(source: str, target: Tensor, vocab_size: int, shard: slice) -> WeightSlot:
    """A tensor whose first axis is the vocabulary, of which this rank holds ``shard``."""
    return WeightSlot(
        source=source,
        shape=(vocab_size, *target.shape[1:]),
        shard=(shard, *(slice(None),) * (target.dim() - 1)),
        target=target[: shard.stop - shard.start],
    )
