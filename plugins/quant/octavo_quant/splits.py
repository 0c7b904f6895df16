"""Sums over programs that share a tile of a product, the same whichever of them ends last."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def leave_part(acc, partial, counters, pair, split, splits, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr):
    """Put this program's part by; true for the last of the ``splits`` that share tile ``pair``."""
    place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    tl.store(partial + (pair.to(tl.int64) * splits + split) * (BLOCK_N * BLOCK_T) + place, acc)
    tl.debug_barrier()  # all threads' stores come before the one thread's release
    return tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu") == splits - 1


@triton.jit
def add_parts(partial, counters, pair, splits, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr):
    """All parts of a tile, in their order; the counter is then ready for the next launch."""
    place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    base = partial + pair.to(tl.int64) * splits * (BLOCK_N * BLOCK_T)
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for one in range(splits):
        acc += tl.load(base + one * (BLOCK_N * BLOCK_T) + place, cache_modifier=".cg")
    tl.store(counters + pair, 0)
    return acc
