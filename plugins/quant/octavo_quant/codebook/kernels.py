"""Four-bit codebook weights in Triton: the product for few tokens, and decoding for many."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo_quant.splits import add_parts, leave_part


@triton.jit
def _scale(scales, at, mask, KIND: tl.constexpr):
    """Scales in float32: 0 float32, 1 e4m3, 2 powers of two."""
    s = tl.load(scales + at, mask=mask, other=0)
    if KIND == 1:
        # The exponent of e4m3 in float32's place, then moved by what their biases differ: exact, subnormals too.
        bits = (s.to(tl.int32) & 127) << 20
        s = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    elif KIND == 2:
        s = (s.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    return s


@triton.jit
def _half(packed, table, scales, n, k, groups, size, n_in, HIGH: tl.constexpr, KIND: tl.constexpr,
          GROUP: tl.constexpr, HALF: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """64 inputs of a tile, decoded: [BLOCK_N, 64] float32."""
    code = (packed >> 4) if HIGH else (packed & 15)
    values = tl.load(table + code.to(tl.int32))
    PER: tl.constexpr = HALF // GROUP if GROUP < HALF else 1
    group = (k + (HALF if HIGH else 0)) // GROUP + tl.arange(0, PER)
    at = n.to(tl.int64)[:, None] * groups + group[None, :]
    s = _scale(scales, at, n_in[:, None] & (group < groups)[None, :], KIND)
    spread = tl.broadcast_to(s[:, :, None], [BLOCK_N, PER, HALF // PER])
    return values * tl.reshape(spread, [BLOCK_N, HALF])


@triton.jit(do_not_specialize=["tokens", "splits", "share"])
def codebook_product_kernel(
    packed,
    table,
    scales,
    row_scales,
    x,
    bias,
    out,
    partial,
    counters,
    tokens,
    outputs,
    size,
    x_stride,
    groups,
    splits,
    share,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    # As the product of eight-bit weights: [out, in] x [in, tokens], split along the inputs.
    HALF: tl.constexpr = 64
    tiles = tl.cdiv(outputs, BLOCK_N)
    tile = tl.program_id(0)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tl.arange(0, HALF)
    split = tl.program_id(2)
    lo = split * share * 128
    hi = tl.minimum(size, lo + share * 128)
    n_in = n < outputs
    t_in = t < tokens
    rows = packed + n.to(tl.int64)[:, None] * (size // 2) + j[None, :]
    columns = x + t.to(tl.int64)[None, :] * x_stride + j[:, None]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for k in range(lo, hi, 128):
        codes = tl.load(rows + k // 2, mask=n_in[:, None], other=0)
        first = tl.load(columns + k, mask=t_in[None, :], other=0.0)
        second = tl.load(columns + k + HALF, mask=t_in[None, :], other=0.0)
        low = _half(codes, table, scales, n, k, groups, size, n_in, False, KIND, GROUP, HALF, BLOCK_N)
        high = _half(codes, table, scales, n, k, groups, size, n_in, True, KIND, GROUP, HALF, BLOCK_N)
        acc = tl.dot(low.to(first.dtype), first, acc)
        acc = tl.dot(high.to(first.dtype), second, acc)
    if splits > 1:
        pair = tl.program_id(1) * tiles + tile
        if not leave_part(acc, partial, counters, pair, split, splits, BLOCK_N, BLOCK_T):
            return
        acc = add_parts(partial, counters, pair, splits, BLOCK_N, BLOCK_T)
    if HAS_ROWS:
        acc = acc * tl.load(row_scales + n, mask=n_in, other=0.0)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    at = out + t.to(tl.int64)[None, :] * outputs + n[:, None]
    tl.store(at, acc.to(out.dtype.element_ty), mask=n_in[:, None] & t_in[None, :])


@triton.jit
def codebook_decode_kernel(
    packed,
    table,
    scales,
    row_scales,
    out,
    outputs,
    size,
    groups,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # 128 inputs of BLOCK_N outputs, in 16 bits.
    HALF: tl.constexpr = 64
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) * 128
    j = tl.arange(0, HALF)
    n_in = n < outputs
    wide = n.to(tl.int64)[:, None]
    codes = tl.load(packed + wide * (size // 2) + k // 2 + j[None, :], mask=n_in[:, None], other=0)
    low = _half(codes, table, scales, n, k, groups, size, n_in, False, KIND, GROUP, HALF, BLOCK_N)
    high = _half(codes, table, scales, n, k, groups, size, n_in, True, KIND, GROUP, HALF, BLOCK_N)
    if HAS_ROWS:
        row = tl.load(row_scales + n, mask=n_in, other=0.0)[:, None]
        low = low * row
        high = high * row
    at = out + wide * size + k + j[None, :]
    tl.store(at, low.to(out.dtype.element_ty), mask=n_in[:, None])
    tl.store(at + HALF, high.to(out.dtype.element_ty), mask=n_in[:, None])
