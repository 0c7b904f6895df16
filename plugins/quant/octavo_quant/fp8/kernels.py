"""Eight-bit linears in Triton: quantising activations to FP8, and the product of FP8 or INT8 numbers with scales.

A product is computed as weights times activations, [out, in] x [in, tokens]: tensor cores take 64 rows at a time on
that side and as few as 8 on the other, so a batch of 16 tokens wastes nothing.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo_quant.splits import add_parts, leave_part


@triton.jit
def quantise_rows_kernel(
    x,
    codes,
    scales,
    fixed,
    size,
    stride,
    upper,
    STATIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    # One program a token. Rows that fit are read once; longer ones twice, the second time from the cache.
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if STATIC:
        scale = tl.load(fixed)
    else:
        largest = tl.full([BLOCK], 1e-12, tl.float32)
        for begin in range(0, size, BLOCK):
            v = tl.load(x + row * stride + begin + at, mask=begin + at < size, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(v))
        top = tl.max(largest, 0)
        if BOUNDED:
            top = tl.minimum(top, upper)
        scale = top / 448.0
    tl.store(scales + row, scale)
    if ONCE:
        v = tl.load(x + row * stride + at, mask=at < size, other=0.0).to(tl.float32)
        v = tl.minimum(tl.maximum(v / scale, -448.0), 448.0)
        tl.store(codes + row * size + at, v.to(codes.dtype.element_ty), mask=at < size)
    else:
        for begin in range(0, size, BLOCK):
            v = tl.load(x + row * stride + begin + at, mask=begin + at < size, other=0.0).to(tl.float32)
            v = tl.minimum(tl.maximum(v / scale, -448.0), 448.0)
            tl.store(codes + row * size + begin + at, v.to(codes.dtype.element_ty), mask=begin + at < size)


@triton.jit
def quantise_groups_kernel(
    x, codes, scales, size, stride, groups, GROUP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    # BLOCK groups of one token.
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = at < size
    v = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(v), 1), 1e-12) / 448.0
    v = tl.minimum(tl.maximum(v / scale[:, None], -448.0), 448.0)
    tl.store(codes + row * size + at, v.to(codes.dtype.element_ty), mask=inside)
    tl.store(scales + row * groups + group, scale, mask=group < groups)


@triton.jit(do_not_specialize=["tokens", "splits", "share"])
def scaled_product_kernel(
    weight,
    weight_scales,
    x,
    x_scales,
    x_zeros,
    sums,
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
    BLOCKED: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    SHIFTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    # BLOCKED: scales [outputs, groups] and [tokens, groups], one for BLOCK_K inputs. WIDE: x is 16-bit and has no
    # scales. WHOLE: both are int8. SHIFTED: x stands for x - x_zeros, and sums are those of each output's weights.
    # Programs along the inputs (splits of them, share tiles each) leave partial sums; the last to come
    # adds them in their order, so that an answer never depends on timing.
    tiles = tl.cdiv(outputs, BLOCK_N)
    tile = tl.program_id(0)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    split = tl.program_id(2)
    lo = split * share * BLOCK_K
    hi = tl.minimum(size, lo + share * BLOCK_K)
    n_in = n < outputs
    t_in = t < tokens
    rows = weight + n.to(tl.int64)[:, None] * size + k[None, :]
    columns = x + t.to(tl.int64)[None, :] * x_stride + k[:, None]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.int32 if WHOLE else tl.float32)
    for begin in range(lo, hi, BLOCK_K):
        if EVEN:
            w = tl.load(rows + begin, mask=n_in[:, None], other=0.0)
            v = tl.load(columns + begin, mask=t_in[None, :], other=0.0)
        else:
            k_in = begin + k < size
            w = tl.load(rows + begin, mask=n_in[:, None] & k_in[None, :], other=0.0)
            v = tl.load(columns + begin, mask=t_in[None, :] & k_in[:, None], other=0.0)
        if WIDE:
            w = w.to(v.dtype)
        if BLOCKED:
            group = begin // BLOCK_K
            w_scale = tl.load(weight_scales + n.to(tl.int64) * groups + group, mask=n_in, other=0.0)
            product = tl.dot(w, v) * w_scale[:, None]
            if not WIDE:
                v_scale = tl.load(x_scales + t.to(tl.int64) * groups + group, mask=t_in, other=0.0)
                product = product * v_scale[None, :]
            acc += product
        elif WHOLE:
            acc = tl.dot(w, v, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(w, v, acc)
    acc = acc.to(tl.float32)
    if splits > 1:
        pair = tl.program_id(1) * tiles + tile
        if not leave_part(acc, partial, counters, pair, split, splits, BLOCK_N, BLOCK_T):
            return
        acc = add_parts(partial, counters, pair, splits, BLOCK_N, BLOCK_T)
    if SHIFTED:
        zero = tl.load(x_zeros + t, mask=t_in, other=0.0)
        acc -= tl.load(sums + n, mask=n_in, other=0.0)[:, None] * zero[None, :]
    if not BLOCKED:
        acc = acc * tl.load(weight_scales + n, mask=n_in, other=0.0)[:, None]
        if not WIDE:
            acc = acc * tl.load(x_scales + t, mask=t_in, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    at = out + t.to(tl.int64)[None, :] * outputs + n[:, None]
    tl.store(at, acc.to(out.dtype.element_ty), mask=n_in[:, None] & t_in[None, :])
