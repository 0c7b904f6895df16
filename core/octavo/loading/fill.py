"""Filling the weight slots of a model from a checkpoint: the checks and the loop that all loaders share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.contracts.loading import Progress
from octavo.contracts.model import CausalLM, WeightSlot, filled
from octavo.errors import CheckpointError
from octavo.records import ModelProfile

_CONVERTIBLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_QUANTISED = re.compile(r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|weight_packed|absmax|SCB)$|\.weight\.")
_NAMED = 5


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint. ``dtype`` is what reading it gives; ``nbytes`` its size in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    offset: int
    nbytes: int


Copy = Callable[[StoredTensor, WeightSlot], None]
"""Copies ``tensor[slot.shard]`` into ``slot.target``. May run on several threads at once."""


def fill(
    model: CausalLM,
    profile: ModelProfile,
    stored: Mapping[str, StoredTensor],
    copy: Copy,
    progress: Progress,
    *,
    threads: int = 1,
) -> None:
    """Check every slot against the checkpoint, then copy tensor by tensor in the order of the files.

    ``stored`` is keyed by the names that slots use. Nothing is copied before all checks have passed. Raises
    :class:`CheckpointError` naming file and tensor.
    """
    slots = model.slots()
    _check_missing(slots, profile, stored)
    _check_unknown(slots, profile, stored, model.ignored_weights)
    work = [(stored[slot.source], slot) for slot in slots if slot.source in stored]
    for tensor, slot in work:
        _check_slot(tensor, slot)
    work.sort(key=lambda item: (item[0].file, item[0].offset))
    total = sum(tensor.nbytes for tensor, _ in work)
    done = 0
    for tensor in _copy_all(work, copy, threads):
        done += tensor.nbytes
        progress(done, total, tensor.name)


def shard_shape(slot: WeightSlot) -> tuple[int, ...]:
    """Shape of ``tensor[slot.shard]``."""
    sliced = tuple(len(range(*part.indices(size))) for part, size in zip(slot.shard, slot.shape, strict=False))
    return sliced + slot.shape[len(sliced) :]


def _copy_all(work: Sequence[tuple[StoredTensor, WeightSlot]], copy: Copy, threads: int) -> Iterable[StoredTensor]:
    def one(tensor: StoredTensor, slot: WeightSlot) -> StoredTensor:
        with torch.inference_mode(), filled(slot):  # inference: of this thread; the caller's does not reach a pool
            copy(tensor, slot)
        return tensor

    if threads <= 1:
        for tensor, slot in work:
            yield one(tensor, slot)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="octavo-load") as pool:
        pending = {pool.submit(one, tensor, slot) for tensor, slot in work}
        try:
            while pending:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


def _check_missing(slots: Sequence[WeightSlot], profile: ModelProfile, stored: Mapping[str, StoredTensor]) -> None:
    missing = [slot.source for slot in slots if not slot.optional and slot.source not in stored]
    if missing:
        raise CheckpointError(
            f"{profile.path}: {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            f"{profile.architecture} with this configuration needs {'it' if len(missing) == 1 else 'them'}. "
            "The checkpoint is incomplete, or its config.json belongs to another model."
        )


def _check_unknown(
    slots: Sequence[WeightSlot],
    profile: ModelProfile,
    stored: Mapping[str, StoredTensor],
    ignored: Sequence[str],
) -> None:
    known = {slot.source for slot in slots}
    patterns = [re.compile(pattern) for pattern in ignored]
    unknown = [
        name
        for name in stored
        if name not in known
        and not (profile.tied_embeddings and name.endswith("lm_head.weight"))
        and not any(pattern.search(name) for pattern in patterns)
    ]
    if unknown:
        quantised = any(_QUANTISED.search(name) for name in unknown)
        why = (
            "it looks quantised in a way that no active scheme reads"
            if quantised
            else "config.json may be another's"
        )
        raise CheckpointError(
            f"{stored[unknown[0]].file}: {_listed(unknown)} {'is' if len(unknown) == 1 else 'are'} "
            f"not known to {profile.architecture} with this configuration; {why}."
        )


def _check_slot(tensor: StoredTensor, slot: WeightSlot) -> None:
    if tensor.shape != slot.shape:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, "
            f"but by the configuration it must be {list(slot.shape)}."
        )
    wanted = slot.target.dtype
    convertible = tensor.dtype in _CONVERTIBLE and wanted in _CONVERTIBLE and not slot.exact
    if tensor.dtype != wanted and not convertible:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} is stored as {_short(tensor.dtype)}, "
            f"but the model takes {_short(wanted)} here and these can't be converted."
        )
    if tuple(slot.target.shape) != shard_shape(slot):
        raise ValueError(
            f"slot {slot.source}: target {list(slot.target.shape)} is not its shard {list(shard_shape(slot))}"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {', '.join(names[:_NAMED])}{more}"
