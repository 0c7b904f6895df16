"""Quantising activations to INT8 in Triton."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def quantise_int8_kernel(
    x,
    codes,
    scales,
    zeros,
    fixed_scale,
    fixed_zero,
    size,
    stride,
    STATIC: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    # One program a token, whose inputs are read twice, the second time from the cache.
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if STATIC:
        scale = tl.load(fixed_scale)
        zero = tl.load(fixed_zero)
    else:
        high = tl.zeros([BLOCK], tl.float32)
        low = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, size, BLOCK):
            v = tl.load(x + row * stride + begin + at, mask=begin + at < size, other=0.0).to(tl.float32)
            high = tl.maximum(high, tl.abs(v) if SYMMETRIC else v)
            low = tl.minimum(low, v)
        if SYMMETRIC:
            scale = tl.maximum(tl.max(high, 0), 1e-12) / 127.0
            zero = scale * 0.0
        else:
            bottom = tl.min(low, 0)
            scale = tl.maximum(tl.max(high, 0) - bottom, 1e-12) / 255.0
            zero = -128.0 - tl.floor(bottom / scale + 0.5)
    tl.store(scales + row, scale)
    tl.store(zeros + row, zero)
    for begin in range(0, size, BLOCK):
        v = tl.load(x + row * stride + begin + at, mask=begin + at < size, other=0.0).to(tl.float32)
        v = tl.floor(v / scale + 0.5) + zero
        v = tl.minimum(tl.maximum(v, -128.0), 127.0)
        tl.store(codes + row * size + begin + at, v.to(tl.int8), mask=begin + at < size)
