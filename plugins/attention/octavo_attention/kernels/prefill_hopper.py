"""Prefill on Hopper: one warp fetches pages by bulk copy, two warpgroups multiply; same result as ``prefill``.

The copy engine takes a page straight to its place in a tile, so reading through a block table of 16 tokens costs
nothing. The warpgroups share the key and value tiles, hold 64 query rows each, and run free of each other, so
that one's softmax fills the other's waits for the tensor cores; within one, the product with the values of a tile
runs under the softmax of the next.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

_fetch = (
    tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
)  # renamed after Triton 3.6


@gluon.jit
def _work_item(
    turn, batch, KV_HEADS: gl.constexpr, TOKENS: gl.constexpr, BLOCK_N: gl.constexpr, WINDOW: gl.constexpr
):
    """Head, row and key tiles [lo, hi) of the item that this program takes at ``turn``.

    Items fall in length, so programs take them forth and back: whoever got the longest gets the shortest next.
    """
    lengths, starts, work, items = batch
    program, programs = gl.program_id(0), gl.num_programs(0)
    begin = turn - program
    back = begin + gl.minimum(programs, items - begin) - 1 - program
    item = gl.where(begin // programs % 2 == 1, back, turn)
    head = item % KV_HEADS
    tile = work + item // KV_HEADS * 2
    row = gl.load(tile)
    first = gl.load(tile + 1)
    length = gl.load(lengths + row)
    begin = gl.load(starts + row)
    queries = gl.load(starts + row + 1) - begin
    position = length - queries + first
    lo = 0
    if WINDOW > 0:
        lo = gl.maximum(position - WINDOW + 1, 0) // BLOCK_N
    hi = (gl.minimum(length, position + TOKENS) + BLOCK_N - 1) // BLOCK_N
    return head, row, length, begin + first, queries - first, position, lo, hi


@gluon.jit
def _load_partition(
    cache,
    tables,
    table_stride,
    batch,
    tiles,
    barriers,
    KV_HEADS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    TOKENS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    WINDOW: gl.constexpr,
    STAGES: gl.constexpr,
):
    PAGE: gl.constexpr = cache.block_shape[0]
    BYTES: gl.constexpr = BLOCK_N * cache.block_shape[1] * 2
    k_tiles, v_tiles = tiles
    k_ready, k_free, v_ready, v_free = barriers
    step = 0
    for turn in range(gl.program_id(0), batch[3], gl.num_programs(0)):
        head, row, length, _, _, _, lo, hi = _work_item(turn, batch, KV_HEADS, TOKENS, BLOCK_N, WINDOW)
        table = tables + row.to(gl.int64) * table_stride
        for j in range(hi - 1, lo - 1, -1):
            stage = step % STAGES
            phase = (step // STAGES + 1) & 1
            pages = ()
            for i in gl.static_range(BLOCK_N // PAGE):  # before the wait, so that the look-ups run under it
                pages += (_page(table, j * BLOCK_N + i * PAGE, length, head, KV_HEADS, BLOCK_SIZE, PAGE),)
            mbarrier.wait(k_free.index(stage), phase)
            mbarrier.expect(k_ready.index(stage), BYTES)
            for i in gl.static_range(BLOCK_N // PAGE):
                target = k_tiles.index(stage).slice(i * PAGE, PAGE)
                _fetch(cache, [pages[i], 0], k_ready.index(stage), target)
            mbarrier.wait(v_free.index(stage), phase)
            mbarrier.expect(v_ready.index(stage), BYTES)
            for i in gl.static_range(BLOCK_N // PAGE):
                target = v_tiles.index(stage).slice(i * PAGE, PAGE)
                _fetch(cache, [pages[i] + BLOCK_SIZE, 0], v_ready.index(stage), target)
            step += 1


@gluon.jit
def _page(table, n, length, head, KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, PAGE: gl.constexpr):
    """Row of the cache, seen as [rows, head_dim], where the keys from position ``n`` begin."""
    block = gl.load(table + n // BLOCK_SIZE, mask=n < length, other=0)
    row = (block * KV_HEADS + head) * (2 * BLOCK_SIZE) + n % BLOCK_SIZE
    # Outside of the cache the copy engine writes zeros: keys past the end must not bring NaN into 0 * value.
    return gl.where(n < length, row, -PAGE - BLOCK_SIZE)


@gluon.jit
def _softmax(
    s,
    high,
    scale,
    soft_cap,
    start,
    position,
    MASKED: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
    BLOCK_N: gl.constexpr,
):
    if SOFT_CAP:
        bent = 1.0 - 2.0 / (gl.exp2(s * (scale / soft_cap * 2.0)) + 1.0)
        s = bent * (soft_cap * 1.4426950408889634)
        scale = 1.0
    if MASKED:
        n = start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, s.type.layout))
        seen = n[None, :] <= position[:, None]
        if WINDOW > 0:
            seen = seen & (n[None, :] > position[:, None] - WINDOW)
        s = gl.where(seen, s, float("-inf"))
    top = gl.maximum(high, gl.max(s, 1) * scale)
    weight = gl.exp2(s * scale - top[:, None])
    return weight, top, gl.exp2(high - top)


@gluon.jit
def _next_tile(
    state,
    q_tile,
    step,
    start,
    position,
    scale,
    soft_cap,
    tiles,
    barriers,
    MASKED: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
    S_LAYOUT: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Multiply by this tile's keys and the tile before's values; the softmax runs under the second product."""
    acc, p, high, norm = state
    k_tiles, v_tiles = tiles
    k_ready, k_free, v_ready, v_free = barriers
    stage = step % STAGES
    before = (step - 1) % STAGES
    mbarrier.wait(k_ready.index(stage), step // STAGES & 1)
    zero = gl.zeros([64, BLOCK_N], gl.float32, S_LAYOUT)
    s = warpgroup_mma(q_tile, k_tiles.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(before), (step - 1) // STAGES & 1)
    acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_free.index(stage), count=1)
    weight, high, shrink = _softmax(s, high, scale, soft_cap, start, position, MASKED, WINDOW, SOFT_CAP, BLOCK_N)
    norm = norm * shrink + gl.sum(weight, 1)
    weight = gl.convert_layout(weight.to(q_tile.dtype), p.type.layout)
    # The new weights pass through the wait, and the branch of a barrier that is long complete stands before it, so
    # that no compiler moves the softmax from under the running product to behind it.
    mbarrier.wait(v_ready.index(before), (step - 1) // STAGES & 1)
    acc, _, p = warpgroup_mma_wait(0, deps=[acc, p, weight])
    mbarrier.arrive(v_free.index(before), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]
    return acc, p, high, norm


@gluon.jit
def _attend_partition(
    query,
    query_token_stride,
    query_head_stride,
    out,
    batch,
    scale,
    soft_cap,
    q_tiles,
    tiles,
    barriers,
    HALF: gl.constexpr,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TOKENS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
    STAGES: gl.constexpr,
):
    DIM: gl.constexpr = q_tiles.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    m = HALF * 64 + gl.arange(0, 64, gl.SliceLayout(1, ROWS))
    d = gl.arange(0, DIM, gl.SliceLayout(0, ROWS))
    q_tile = q_tiles.index(HALF)
    k_tiles, v_tiles = tiles
    k_ready, k_free, v_ready, v_free = barriers
    step = 0
    for turn in range(gl.program_id(0), batch[3], gl.num_programs(0)):
        head, _, _, begin, queries, position, lo, hi = _work_item(turn, batch, KV_HEADS, TOKENS, BLOCK_N, WINDOW)
        inside = ((m < TOKENS * GROUP) & (m // GROUP < queries))[:, None] & (d < HEAD_DIM)[None, :]
        token = (begin + m // GROUP).to(gl.int64)[:, None]
        q_head = (head * GROUP + m % GROUP)[:, None]
        q_at = query + token * query_token_stride + q_head * query_head_stride + d[None, :]
        q_tile.store(gl.load(q_at, mask=inside, other=0.0))
        fence_async_shared()

        # Last tile first: it is on the diagonal, and the masked tiles then come before the long plain run.
        stage = step % STAGES
        mbarrier.wait(k_ready.index(stage), step // STAGES & 1)
        zero = gl.zeros([64, BLOCK_N], gl.float32, S_LAYOUT)
        s = warpgroup_mma(q_tile, k_tiles.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_free.index(stage), count=1)
        positions = position + (HALF * 64 + gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT))) // GROUP
        high = gl.full([64], -1e30, gl.float32, gl.SliceLayout(1, S_LAYOUT))
        weight, high, _ = _softmax(
            s, high, scale, soft_cap, (hi - 1) * BLOCK_N, positions, True, WINDOW, SOFT_CAP, BLOCK_N
        )
        p = gl.convert_layout(weight.to(q_tile.dtype), P_LAYOUT)
        state = (gl.zeros([64, DIM], gl.float32, O_LAYOUT), p, high, gl.sum(weight, 1))
        step += 1
        plain = lo  # tiles [lo, plain) need no mask
        if WINDOW == 0:
            plain = gl.minimum((position + 1) // BLOCK_N, hi - 1)
        for j in range(hi - 2, plain - 1, -1):
            state = _next_tile(
                state, q_tile, step, j * BLOCK_N, positions, scale, soft_cap, tiles, barriers,
                True, WINDOW, SOFT_CAP, S_LAYOUT, BLOCK_N, STAGES,
            )  # fmt: skip
            step += 1
        for j in range(plain - 1, lo - 1, -1):
            state = _next_tile(
                state, q_tile, step, j * BLOCK_N, positions, scale, soft_cap, tiles, barriers,
                False, WINDOW, SOFT_CAP, S_LAYOUT, BLOCK_N, STAGES,
            )  # fmt: skip
            step += 1
        acc, p, high, norm = state
        before = (step - 1) % STAGES
        mbarrier.wait(v_ready.index(before), (step - 1) // STAGES & 1)
        acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_free.index(before), count=1)
        norm = gl.convert_layout(norm, gl.SliceLayout(1, O_LAYOUT))
        # Through shared memory, so that the stores are whole lines.
        q_tile.store((acc / gl.maximum(norm, 1e-30)[:, None]).to(q_tile.dtype))
        out_at = out + (token * (KV_HEADS * GROUP) + q_head) * HEAD_DIM + d[None, :]
        gl.store(out_at, q_tile.load(ROWS), mask=inside)


@gluon.jit(do_not_specialize=["items", "table_stride"])
def prefill_hopper_kernel(
    query,
    cache,
    tables,
    lengths,
    starts,
    work,
    out,
    items,
    scale,
    soft_cap,
    query_token_stride,
    query_head_stride,
    table_stride,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    TOKENS: gl.constexpr = 128 // GROUP
    DIM: gl.constexpr = cache.block_shape[1]
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_tiles = gl.allocate_shared_memory(cache.dtype, [2, 64, DIM], LAYOUT)
    k_tiles = gl.allocate_shared_memory(cache.dtype, [STAGES, BLOCK_N, DIM], LAYOUT)
    v_tiles = gl.allocate_shared_memory(cache.dtype, [STAGES, BLOCK_N, DIM], LAYOUT)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)
        mbarrier.init(v_free.index(i), count=2)
    batch = (lengths, starts, work, items)
    tiles = (k_tiles, v_tiles)
    barriers = (k_ready, k_free, v_ready, v_free)
    gl.warp_specialize(
        [
            (
                _attend_partition,
                (query, query_token_stride, query_head_stride, out, batch, scale, soft_cap, q_tiles, tiles,
                 barriers, 0, KV_HEADS, GROUP, HEAD_DIM, TOKENS, BLOCK_N, WINDOW, SOFT_CAP, STAGES),
            ),
            (
                _attend_partition,
                (query, query_token_stride, query_head_stride, out, batch, scale, soft_cap, q_tiles, tiles,
                 barriers, 1, KV_HEADS, GROUP, HEAD_DIM, TOKENS, BLOCK_N, WINDOW, SOFT_CAP, STAGES),
            ),
            (
                _load_partition,
                (cache, tables, table_stride, batch, tiles, barriers, KV_HEADS, BLOCK_SIZE, TOKENS, BLOCK_N,
                 WINDOW, STAGES),
            ),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
