"""The dummy loader: random weights of the right shapes, for benchmarks on a model that is not there."""

from __future__ import annotations

import hashlib
import re

import torch

from octavo.contracts.loading import Progress
from octavo.contracts.model import CausalLM, WeightSlot, filled
from octavo.records import ModelProfile

# Values of real models' size: near-zero weights would make matrix products faster than real ones.
_STD = 0.02
_E4M3_STD = 64.0
_E4M3_MAX = 448.0
_SCALE = _STD / _E4M3_STD
_NORM = re.compile(r"norm[^.]*\.weight$")
_SCALES = re.compile(r"_scale(_inv)?$")
_KV_SCALES = re.compile(r"(^|\.)[kv]_scale$")
_INDICES = re.compile(r"\.g_idx$")  # group numbers of rows: random ones would point outside
_PIECE = 1 << 25  # elements drawn at once where a second type is needed
_POOL = (1 << 22) + 9  # random numbers on a CPU before they repeat; no row length divides it


class DummyLoader:
    """A :class:`octavo.contracts.loading.ModelLoader` that draws weights instead of reading them.

    Matrices N(0, 0.02), norms 1, biases 0, e4m3 matrices N(0, 64) with scale 0.02 / 64, KV scales 1, integers
    random bits. Values depend on ``seed``, the tensor's name and its shard only.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._pools: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def load(self, model: CausalLM, profile: ModelProfile, progress: Progress) -> None:
        """Fill every slot; what a checkpoint may lack stays unset, as if it lacked it."""
        slots = [slot for slot in model.slots() if not slot.optional]
        total = sum(slot.target.nbytes for slot in slots)
        done = 0
        with torch.inference_mode():
            for slot in slots:
                with filled(slot):
                    self._fill(slot)
                done += slot.target.nbytes
                progress(done, total, slot.source)
        self._pools.clear()

    def _fill(self, slot: WeightSlot) -> None:
        target, name = slot.target, slot.source
        constant = _constant(slot)
        if constant is not None:
            target.fill_(constant)
        elif not target.dtype.is_floating_point:
            _random_bits(target, self._generator(slot))
        elif target.itemsize == 1:
            self._quantised(target, self._generator(slot))
        elif target.device.type == "cpu" and target.numel() > _POOL and target.is_contiguous():
            self._from_pool(target, name)
        else:
            target.normal_(0.0, _STD, generator=self._generator(slot))

    def _generator(self, slot: WeightSlot) -> torch.Generator:
        generator = torch.Generator(device=slot.target.device)
        return generator.manual_seed(self._number(f"{slot.source}{slot.shard}"))

    def _number(self, text: str) -> int:
        digest = hashlib.sha256(f"{self._seed} {text}".encode()).digest()
        return int.from_bytes(digest[:6], "little")

    def _quantised(self, target: torch.Tensor, generator: torch.Generator) -> None:
        rows = target.view(-1) if target.is_contiguous() else target
        step = max(1, _PIECE // max(1, rows.numel() // len(rows)))
        for at in range(0, len(rows), step):
            piece = rows[at : at + step]
            drawn = torch.empty(piece.shape, dtype=torch.float32, device=target.device)
            drawn.normal_(0.0, _E4M3_STD, generator=generator).clamp_(-_E4M3_MAX, _E4M3_MAX)
            piece.copy_(drawn)

    def _from_pool(self, target: torch.Tensor, name: str) -> None:
        """Big matrices on a CPU: drawing takes 10 ns a number, copying a tenth of that."""
        key = (target.device, target.dtype)
        if key not in self._pools:
            generator = torch.Generator().manual_seed(self._number("pool"))
            drawn = torch.empty(_POOL).normal_(0.0, _STD, generator=generator)
            self._pools[key] = drawn.to(target.dtype).repeat(2)
        pool = self._pools[key]
        rows = target.view(len(target), -1)
        step = max(1, _POOL // rows.shape[1])
        for number, at in enumerate(range(0, len(rows), step)):
            piece = rows[at : at + step]
            start = self._number(f"{name} {number}") % _POOL
            piece.copy_(pool[start : start + piece.numel()].view(piece.shape))


def _constant(slot: WeightSlot) -> float | None:
    """The value of tensors that are not drawn."""
    name = slot.source
    if _KV_SCALES.search(name):
        return 1.0
    if _SCALES.search(name):
        return _SCALE
    if len(slot.shape) == 1 and _NORM.search(name):
        return 1.0
    return 0.0 if name.endswith(".bias") or _INDICES.search(name) else None


def _random_bits(target: torch.Tensor, generator: torch.Generator) -> None:
    if target.dtype == torch.bool:
        target.random_(0, 2, generator=generator)
        return
    info = torch.iinfo(target.dtype)
    if info.bits == 64:
        target.random_(generator=generator)
    else:
        target.random_(info.min, info.max + 1, generator=generator)
