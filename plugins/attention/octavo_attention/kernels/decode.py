"""Decode: every row brings the same few query tokens (usually one) and reads its whole cached context."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo_attention.kernels.common import capped, page_offsets, softmax_step

# The work is a line of units: row by row, head by head, one unit a tile of BLOCK_N keys. Each program takes an
# equal, contiguous run of it ("stream-K"), so the grid never depends on the lengths, which only the device
# knows when a captured graph is replayed, and ragged batches stay balanced. Once a step `split_kernel` finds where
# each run begins. A program goes through its run in one loop, so that the tiles of the next head or row are on
# their way before the last one is done. A (row, head) that lies within one run is written at once; one that is
# cut leaves partial results, and whoever finishes last merges them.


@triton.jit
def _first_unit(total, programs, program):
    return program * (total // programs) + tl.minimum(program, total % programs)


@triton.jit
def _owner(total, programs, unit):
    """The program whose run holds ``unit``: the inverse of ``_first_unit``."""
    size = total // programs
    longer = total % programs * (size + 1)
    behind = total % programs + (unit - longer) // tl.maximum(size, 1)
    return tl.where(unit < longer, unit // (size + 1), behind)


@triton.jit
def _first_tile(length, QUERIES: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    if WINDOW > 0:
        return tl.maximum(length - QUERIES - WINDOW + 1, 0) // BLOCK_N
    return length * 0


@triton.jit
def _tile_count(length, QUERIES: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    # None for a padding row: a unit costs a program the same latency whether there is anything to read or not.
    return (length + BLOCK_N - 1) // BLOCK_N - _first_tile(length, QUERIES, WINDOW, BLOCK_N)


@triton.jit(do_not_specialize=["rows", "programs"])
def split_kernel(
    lengths,
    runs,
    rows,
    programs,
    KV_HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PART: tl.constexpr,
):
    """Writes ``runs`` int32 [programs + 1, 4]: first row, head, tile and units of each; then units in all."""
    r = tl.arange(0, ROWS)
    counts = _tile_count(tl.load(lengths + r, mask=r < rows, other=0), QUERIES, WINDOW, BLOCK_N)
    ends = tl.cumsum(tl.where(r < rows, counts, 0), 0) * KV_HEADS
    total = tl.max(ends, 0)
    busy = tl.maximum(tl.minimum(programs, total), 1)
    program = tl.program_id(0) * PART + tl.arange(0, PART)
    unit = _first_unit(total, busy, program)
    units = tl.where(program < tl.minimum(programs, total), _first_unit(total, busy, program + 1) - unit, 0)
    before = ends[None, :] <= unit[:, None]
    row = tl.minimum(tl.sum(before.to(tl.int32), 1), rows - 1)
    inside = unit - tl.max(tl.where(before, ends[None, :], 0), 1)
    length = tl.load(lengths + row, mask=units > 0, other=1)
    count = _tile_count(length, QUERIES, WINDOW, BLOCK_N)
    at = runs + program * 4
    live = program < programs
    tl.store(at, row, mask=live)
    tl.store(at + 1, inside // count, mask=live)
    tl.store(at + 2, inside % count, mask=live)
    tl.store(at + 3, units, mask=live)
    if tl.program_id(0) == 0:
        tl.store(runs + programs * 4, total)


@triton.jit(do_not_specialize=["rows", "table_stride"])
def decode_kernel(
    query,
    cache,
    tables,
    lengths,
    runs,
    out,
    partial,
    stats,
    counters,
    rows,
    scale,
    soft_cap,
    value_scale,
    query_token_stride,
    query_head_stride,
    table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    USED: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    program = tl.program_id(0)
    run = runs + program * 4
    row = tl.load(run)
    head = tl.load(run + 1)
    tile = tl.load(run + 2)
    units = tl.load(run + 3)
    total = tl.load(runs + tl.num_programs(0) * 4)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    _zero_padding(lengths, out, rows, QUERIES, KV_HEADS * GROUP * HEAD_DIM, DIM)
    first_row = row
    first_head = head
    first_tile = tile
    lo = tile  # of the (row, head) at hand: its first tile in this run

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, DIM)
    used = m < QUERIES * GROUP
    inside = used[:, None] & (d < HEAD_DIM)[None, :]
    high = tl.full([BLOCK_M], -1e30, tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    for left in range(units, 0, -1):
        length = tl.load(lengths + row)
        count = _tile_count(length, QUERIES, WINDOW, BLOCK_N)
        # Query tokens times heads of the group fill the rows of the tile (padded to what tensor cores take).
        token = (row * QUERIES + m // GROUP).to(tl.int64)
        q_head = head * GROUP + m % GROUP
        q_at = query + token[:, None] * query_token_stride + q_head[:, None] * query_head_stride + d[None, :]
        q = tl.load(q_at, mask=inside, other=0.0)
        n = (_first_tile(length, QUERIES, WINDOW, BLOCK_N) + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        table = tables + row.to(tl.int64) * table_stride
        at = page_offsets(table, n, length, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        live = n < length
        keys = (d < HEAD_DIM)[:, None] & live[None, :]
        k = tl.load(cache + at[None, :] + d[:, None], mask=keys, other=0.0)
        values = live[:, None] & (d < HEAD_DIM)[None, :]
        v = tl.load(cache + BLOCK_SIZE * HEAD_DIM + at[:, None] + d[None, :], mask=values, other=0.0)
        s = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)
        if SOFT_CAP:
            s = capped(s, scale, soft_cap)
        position = length - QUERIES + m // GROUP
        seen = n[None, :] <= position[:, None]
        if WINDOW > 0:
            seen = seen & (n[None, :] > position[:, None] - WINDOW)
        s = tl.where(seen, s, float("-inf"))
        # Chosen, not multiplied by 0: what the last (row, head) left may be NaN.
        fresh = tile == 0
        high = tl.where(fresh, -1e30, high)
        norm = tl.where(fresh, 0.0, norm)
        acc = tl.where(fresh, 0.0, acc)
        p, high, norm, shrink = softmax_step(s, high, norm, 1.0 if SOFT_CAP else scale)
        acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)

        closes = tile + 1 == count
        if closes | (left == 1):
            if closes & (lo == 0):
                out_at = out + token[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + q_head[:, None] * HEAD_DIM
                tl.store(out_at + d[None, :], acc * (value_scale / tl.maximum(norm, 1e-30))[:, None], mask=inside)
            else:
                slot = program * 2 + (lo == 0).to(tl.int32)
                tl.store(partial + (slot * USED + m[:, None]) * DIM + d[None, :], acc, mask=used[:, None])
                tl.store(stats + slot * 2 * USED + m, high, mask=used)
                tl.store(stats + slot * 2 * USED + USED + m, norm, mask=used)
        done = closes.to(tl.int32)
        lo = tl.where(closes, 0, lo)
        tile = tl.where(closes, 0, tile + 1)
        wraps = head + done == KV_HEADS
        head = tl.where(wraps, 0, head + done)
        row = row + wraps.to(tl.int32)

    # Cut at the beginning of the run, at its end, or both (of one or of two).
    tl.debug_barrier()  # all threads' stores come before the one thread's release
    busy = tl.maximum(tl.minimum(tl.num_programs(0), total), 1)
    begin = _first_unit(total, busy, program)
    for which in range(2):
        last = which == 1
        cut = tl.where(last, (tile > 0) & (lo == 0), first_tile > 0) & (units > 0)
        if cut:
            its_row = tl.where(last, row, first_row)
            its_head = tl.where(last, head, first_head)
            its_begin = tl.where(last, begin + units - tile, begin - first_tile)
            count = _tile_count(tl.load(lengths + its_row), QUERIES, WINDOW, BLOCK_N)
            left_one = _owner(total, busy, its_begin)
            right_one = _owner(total, busy, its_begin + count - 1)
            pair = its_row * KV_HEADS + its_head
            if tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu") == right_one - left_one:
                _merge(
                    partial, stats, out, left_one, right_one, its_row * QUERIES, its_head, value_scale,
                    KV_HEADS, GROUP, QUERIES, HEAD_DIM, DIM, USED,
                )  # fmt: skip
                tl.store(counters + pair, 0)  # ready for the next launch


@triton.jit
def _zero_padding(lengths, out, rows, QUERIES: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Padding rows answer zeros: programs share them, one after another."""
    d = tl.arange(0, DIM)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        if tl.load(lengths + row) == 0:
            for at in range(0, QUERIES * WIDTH, DIM):
                here = at + d < QUERIES * WIDTH
                tl.store(out + row * (QUERIES * WIDTH) + at + d, tl.zeros([DIM], tl.float32), mask=here)


@triton.jit
def _merge(
    partial,
    stats,
    out,
    left,
    right,
    token,
    head,
    value_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    USED: tl.constexpr,
):
    # Partial results are read several at once, so that their loads overlap, as far as registers allow.
    PARTS: tl.constexpr = max(1, 4096 // (USED * DIM))
    m = tl.arange(0, USED)
    d = tl.arange(0, DIM)
    high = tl.full([USED], -1e30, tl.float32)
    norm = tl.zeros([USED], tl.float32)
    acc = tl.zeros([USED, DIM], tl.float32)
    for base in range(left, right + 1, PARTS):
        part = base + tl.arange(0, PARTS)
        slot = part * 2 + (part == left).to(tl.int32)
        live = (part <= right)[:, None] & (m < QUERIES * GROUP)[None, :]
        at = slot[:, None] * USED + m[None, :]
        stat = stats + slot[:, None] * (2 * USED) + m[None, :]
        high_part = tl.load(stat, mask=live, other=-1e30, cache_modifier=".cg")
        norm_part = tl.load(stat + USED, mask=live, other=0.0, cache_modifier=".cg")
        acc_at = partial + at[:, :, None] * DIM + d[None, None, :]
        acc_part = tl.load(acc_at, mask=live[:, :, None], other=0.0, cache_modifier=".cg")
        top = tl.maximum(high, tl.max(high_part, 0))
        shrink = tl.exp2(high - top)
        weight = tl.exp2(high_part - top[None, :])
        norm = norm * shrink + tl.sum(norm_part * weight, 0)
        acc = acc * shrink[:, None] + tl.sum(acc_part * weight[:, :, None], 0)
        high = top
    at = (token + m // GROUP).to(tl.int64)[:, None] * (KV_HEADS * GROUP) + head * GROUP + (m % GROUP)[:, None]
    inside = (m < QUERIES * GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(out + at * HEAD_DIM + d[None, :], acc * (value_scale / tl.maximum(norm, 1e-30))[:, None], mask=inside)
