"""The kernels over packed grouped weights: products for few and for many tokens, and dequantisation.

Codes become floating-point numbers by bit tricks (Kim et al., "Who Says Elephants Can't Run", arXiv 2211.10017):
a code in the low mantissa bits of a power of two *is* that power plus the code, so a mask, an or and one
subtraction do what a conversion would take four times as long for.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Two words of eight 4-bit codes to eight pairs of bfloat16 (or float16), each less the zero point. $0 to $7: the
# pairs; $8, $9: the words; $10: minus (magic + zero point), twice.
_ASM = """
{{
.reg .b32 low, high, part, one;
prmt.b32 low, $8, $9, 0x5410;
prmt.b32 high, $8, $9, 0x7632;
mov.b32 one, {one};
lop3.b32 $0, low, 0x000F000F, {magic}, 0xEA;
shr.u32 part, low, 4;
lop3.b32 $1, part, 0x000F000F, {magic}, 0xEA;
shr.u32 part, low, 8;
lop3.b32 $2, part, 0x000F000F, {magic}, 0xEA;
shr.u32 part, low, 12;
lop3.b32 $3, part, 0x000F000F, {magic}, 0xEA;
lop3.b32 $4, high, 0x000F000F, {magic}, 0xEA;
shr.u32 part, high, 4;
lop3.b32 $5, part, 0x000F000F, {magic}, 0xEA;
shr.u32 part, high, 8;
lop3.b32 $6, part, 0x000F000F, {magic}, 0xEA;
shr.u32 part, high, 12;
lop3.b32 $7, part, 0x000F000F, {magic}, 0xEA;
fma.rn.{kind} $0, $0, one, $10;
fma.rn.{kind} $1, $1, one, $10;
fma.rn.{kind} $2, $2, one, $10;
fma.rn.{kind} $3, $3, one, $10;
fma.rn.{kind} $4, $4, one, $10;
fma.rn.{kind} $5, $5, one, $10;
fma.rn.{kind} $6, $6, one, $10;
fma.rn.{kind} $7, $7, one, $10;
}}
"""
_UNPACK_BF16 = tl.constexpr(_ASM.format(magic="0x43004300", one="0x3F803F80", kind="bf16x2"))
_UNPACK_F16 = tl.constexpr(_ASM.format(magic="0x64006400", one="0x3C003C00", kind="f16x2"))
_CONSTRAINTS = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r")
_MAGIC = tl.constexpr(8388608.0)  # 2 ** 23: the mantissa's low bits count ones


@triton.jit
def _prefetch(words_ptr, first, units, outputs, row, BLOCK_N: tl.constexpr):
    """Ask for the first four tiles of words, 128 bytes (two rows) a request; nothing waits for them. All four at
    once make a request for each thread: of fewer each warp would make all."""
    index = tl.arange(0, 2 * BLOCK_N)
    rows = tl.minimum(row + index % (BLOCK_N // 2) * 2, outputs - 1)
    unit = tl.minimum(first + index // (BLOCK_N // 2), units - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [words_ptr + (unit * outputs + rows) * 16],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _scale_of(meta, WIDE: tl.constexpr):
    """float32 of the low half."""
    low = (meta & 0xFFFF).to(tl.uint16)
    if WIDE:
        scale = low.to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        scale = low.to(tl.float16, bitcast=True).to(tl.float32)
    return scale


@triton.jit
def _zero_of(meta, BITS: tl.constexpr, ZERO: tl.constexpr):
    """float32 of the high half, or the middle code."""
    if ZERO == 0:
        zero = tl.full(meta.shape, 1 << (BITS - 1), tl.float32)
    else:
        zero = ((meta >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return zero


@triton.jit
def _code(words, index: tl.constexpr, FIELD: tl.constexpr):
    """Codes of one field of all words."""
    return (words >> (index * FIELD)) & ((1 << FIELD) - 1)


@triton.jit
def _field(words, index: tl.constexpr, FIELD: tl.constexpr):
    """The same in float32, plus 2 ** 23."""
    return (_code(words, index, FIELD) | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def _unpack_fast(words, zero, IS_BF16: tl.constexpr):
    """Eight tiles of code less zero point, exact, from words of 4-bit codes; ``zero`` [rows, 1] whole numbers."""
    if IS_BF16:
        less = tl.broadcast_to((-128.0 - zero).to(tl.bfloat16), words.shape)
        parts = tl.inline_asm_elementwise(
            _UNPACK_BF16, _CONSTRAINTS, [words, less], dtype=(tl.bfloat16,) * 8, is_pure=True, pack=2
        )
    else:
        less = tl.broadcast_to((-1024.0 - zero).to(tl.float16), words.shape)
        parts = tl.inline_asm_elementwise(
            _UNPACK_F16, _CONSTRAINTS, [words, less], dtype=(tl.float16,) * 8, is_pure=True, pack=2
        )
    return parts


@triton.jit
def _load_x(x_ptr, perm_ptr, rows, channels, tokens, width, x_stride, PERMUTED: tl.constexpr, EVEN: tl.constexpr):
    """[rows, channels] of the input, zero beyond its edges."""
    inside = (rows < tokens)[:, None]
    if not EVEN:
        inside = inside & (channels < width)[None, :]
    if PERMUTED:
        if EVEN:
            channels = tl.load(perm_ptr + channels)
        else:
            channels = tl.load(perm_ptr + channels, mask=channels < width, other=0)
    return tl.load(x_ptr + rows[:, None] * x_stride + channels[None, :], mask=inside, other=0.0)


@triton.jit
def _side_by_side(left, right):
    """[rows, n] twice to [rows, 2 n]: registers change their names, no more."""
    both = tl.permute(tl.join(left, right), (0, 2, 1))
    return tl.reshape(both, (left.shape[0], 2 * left.shape[1]))


@triton.jit
def _gather(parts, first: tl.constexpr, count: tl.constexpr):
    """``count`` neighbouring fields, [rows, 16 * count]."""
    if count == 1:
        whole = parts[first]
    elif count == 2:
        whole = _side_by_side(parts[first], parts[first + 1])
    elif count == 4:
        whole = _side_by_side(
            _side_by_side(parts[first], parts[first + 1]), _side_by_side(parts[first + 2], parts[first + 3])
        )
    else:
        left = _side_by_side(_side_by_side(parts[0], parts[1]), _side_by_side(parts[2], parts[3]))
        right = _side_by_side(_side_by_side(parts[4], parts[5]), _side_by_side(parts[6], parts[7]))
        whole = _side_by_side(left, right)
    return whole


@triton.jit
def _multiply(x, weight, acc, SWAP: tl.constexpr):
    """``acc`` plus ``x`` [tokens, 16] by ``weight`` [outputs, 16]; outputs first where ``SWAP``."""
    if SWAP:
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
    else:
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
    return acc


@triton.jit
def _finish(acc, bias_ptr, out_ptr, rows, columns, tokens, outputs, out_stride, BIASED: tl.constexpr):
    """Store ``acc`` [tokens, outputs]."""
    inside = (rows < tokens)[:, None] & (columns < outputs)[None, :]
    if BIASED:
        acc += tl.load(bias_ptr + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    at = out_ptr + rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "units", "span", "splits"])
def product_kernel(
    x_ptr,
    words_ptr,
    meta_ptr,
    table_ptr,
    bias_ptr,
    perm_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    tokens,
    outputs,
    width,
    units,
    span,
    splits,
    x_stride,
    out_stride,
    BITS: tl.constexpr,
    FIELD: tl.constexpr,
    GROUP: tl.constexpr,
    SEGMENT: tl.constexpr,
    ZERO: tl.constexpr,
    WIDE: tl.constexpr,
    BIASED: tl.constexpr,
    PERMUTED: tl.constexpr,
    EVEN: tl.constexpr,
    FAST: tl.constexpr,
    SWAP: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of ``out`` over ``span`` units of input channels.

    ``SEGMENT`` channels of a unit share a scale. Codes less whole zero points are exact in 16 bits: these are
    summed before they are scaled. ``ZERO`` 3: codes are places in a table of each output. ``FAST``: eight codes of
    a word are unpacked at once. Where the channels are ``SPLIT`` among programs, each leaves its float32 sums in
    ``partial``, and the last to arrive adds them up, in order: the same inputs give the same bits. With ``PDL`` the
    first words are asked for before the kernel ahead has ended.
    """
    tile_n, split, tile_m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    UNIT: tl.constexpr = 16 * (32 // FIELD)
    FIELDS: tl.constexpr = SEGMENT // 16
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = columns < outputs
    inner = tl.arange(0, 16)
    first = split * span
    words_at = words_ptr + columns.to(tl.int64)[:, None] * 16 + inner[None, :]
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if PDL:
        _prefetch(words_ptr, first, units, outputs, tile_n * BLOCK_N, BLOCK_N)
        gdc_wait()
        gdc_launch_dependents()
    for unit in tl.range(first, tl.minimum(first + span, units), num_stages=STAGES):
        words = tl.load(words_at + unit * outputs * 16, mask=valid[:, None], other=0)
        for segment in tl.static_range(UNIT // SEGMENT):
            if ZERO != 3:
                group = (unit * UNIT + segment * SEGMENT) // GROUP
                if not EVEN:
                    group = tl.minimum(group, width // GROUP - 1)
                meta = tl.load(meta_ptr + group * outputs + columns, mask=valid, other=0)
                scale = _scale_of(meta, WIDE)
                zero = _zero_of(meta, BITS, ZERO)
            total = tl.zeros(acc.shape, dtype=tl.float32)
            if FAST:
                parts = _unpack_fast(words, zero[:, None], x_ptr.dtype.element_ty == tl.bfloat16)
                channels = unit * UNIT + segment * SEGMENT + tl.arange(0, SEGMENT)
                x = _load_x(x_ptr, perm_ptr, rows, channels, tokens, width, x_stride, PERMUTED, EVEN)
                total = _multiply(x, _gather(parts, segment * FIELDS, FIELDS), total, SWAP)
            else:
                for field in tl.static_range(FIELDS):
                    channels = unit * UNIT + (segment * FIELDS + field) * 16 + inner
                    x = _load_x(x_ptr, perm_ptr, rows, channels, tokens, width, x_stride, PERMUTED, EVEN)
                    if ZERO == 3:
                        at = _code(words, segment * FIELDS + field, FIELD) + columns[:, None] * (1 << BITS)
                        weight = tl.load(table_ptr + at, mask=valid[:, None], other=0.0)
                    else:
                        weight = _field(words, segment * FIELDS + field, FIELD)
                    if ZERO == 2:  # 2 ** 23 plus a real zero point would be rounded
                        weight = ((weight - _MAGIC) - zero[:, None]) * scale[:, None]
                    elif ZERO != 3:
                        weight -= (zero + _MAGIC)[:, None]
                    total = _multiply(x, weight.to(x.dtype), total, SWAP)
            if ZERO >= 2:
                acc += total
            elif SWAP:
                acc += total * scale[:, None]
            else:
                acc += total * scale[None, :]
    if SWAP:
        acc = tl.trans(acc)
    if not SPLIT:
        _finish(acc, bias_ptr, out_ptr, rows, columns, tokens, outputs, out_stride, BIASED)
    else:
        tile = tile_m * tl.num_programs(0) + tile_n
        at = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        mine = partial_ptr + (tile * splits).to(tl.int64) * (BLOCK_M * BLOCK_N) + at
        inside = (rows < tokens)[:, None] & valid[None, :]
        tl.store(mine + split * (BLOCK_M * BLOCK_N), acc, mask=inside)
        tl.debug_barrier()  # all threads' stores come before the one thread's release
        if tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
            total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for other in range(splits):
                total += tl.load(mine + other * (BLOCK_M * BLOCK_N), mask=inside, other=0.0)
            tl.store(counter_ptr + tile, 0)  # ready for the next launch
            _finish(total, bias_ptr, out_ptr, rows, columns, tokens, outputs, out_stride, BIASED)


@triton.jit
def dequantise_kernel(
    words_ptr,
    meta_ptr,
    table_ptr,
    out_ptr,
    first,
    rows,
    outputs,
    width,
    BITS: tl.constexpr,
    FIELD: tl.constexpr,
    GROUP: tl.constexpr,
    SEGMENT: tl.constexpr,
    ZERO: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rows ``first`` to ``first + rows`` of the weight into ``out`` [rows, width]; one unit a program.

    Memory is all that this costs, so a row of a unit is stored in one piece of whole cache lines, words that
    nobody reads again leave the L2 cache to what is written, and each scale is loaded once: ``SEGMENT`` channels of
    a unit share one.
    """
    FIELDS: tl.constexpr = 32 // FIELD
    UNIT: tl.constexpr = 16 * FIELDS
    SEGMENTS: tl.constexpr = UNIT // SEGMENT
    unit = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = row < rows
    column = (first + row).to(tl.int64)
    if PDL:
        gdc_wait()
    at = (unit.to(tl.int64) * outputs + column)[:, None] * 16 + tl.arange(0, 16)[None, :]
    words = tl.load(words_ptr + at, mask=valid[:, None], other=0, eviction_policy="evict_first")
    shifts = tl.arange(0, FIELDS) * FIELD
    code = (words[:, None, :] >> shifts[None, :, None]) & ((1 << FIELD) - 1)
    if ZERO == 3:
        place = tl.reshape(code, (BLOCK_N, UNIT)) + column[:, None] * (1 << BITS)
        value = tl.load(table_ptr + place, mask=valid[:, None], other=0.0)
    else:
        group = (unit * UNIT + tl.arange(0, SEGMENTS) * SEGMENT) // GROUP
        if not EVEN:
            group = tl.minimum(group, width // GROUP - 1)
        meta = tl.load(meta_ptr + group[None, :] * outputs + column[:, None], mask=valid[:, None], other=0)
        scale, zero = _scale_of(meta, WIDE)[:, :, None], _zero_of(meta, BITS, ZERO)[:, :, None]
        code = tl.reshape(code, (BLOCK_N, SEGMENTS, SEGMENT))
        value = ((code | 0x4B000000).to(tl.float32, bitcast=True) - _MAGIC - zero) * scale
        value = tl.reshape(value, (BLOCK_N, UNIT))
    channels = unit * UNIT + tl.arange(0, UNIT)
    inside = valid[:, None]
    if not EVEN:
        inside = inside & (channels < width)[None, :]
    out_at = out_ptr + row.to(tl.int64)[:, None] * width + channels[None, :]
    tl.store(out_at, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_sparse_kernel(
    x_ptr,
    starts_ptr,
    columns_ptr,
    values_ptr,
    out_ptr,
    tokens,
    x_stride,
    out_stride,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the product with one row of a sparse matrix to ``out`` [tokens, rows], for some tokens."""
    row = tl.program_id(0)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < tokens
    begin, end = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    if begin < end:
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        for first in range(begin, end, BLOCK):
            place = first + tl.arange(0, BLOCK)
            valid = place < end
            column = tl.load(columns_ptr + place, mask=valid, other=0)
            value = tl.load(values_ptr + place, mask=valid, other=0.0)
            at = x_ptr + token[:, None].to(tl.int64) * x_stride + column[None, :]
            x = tl.load(at, mask=inside[:, None] & valid[None, :], other=0.0)
            total += tl.sum(x.to(tl.float32) * value[None, :], 1)
        target = out_ptr + token.to(tl.int64) * out_stride + row
        before = tl.load(target, mask=inside, other=0.0)
        tl.store(target, (before.to(tl.float32) + total).to(before.dtype), mask=inside)
