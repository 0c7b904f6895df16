"""Products of a few tokens with a large matrix: bound by reading the matrix, and by the pauses between kernels.

Both kernels start early (see :mod:`octavo.early`), and the one for a single token fetches its first weights before
the kernel ahead has ended, so that the memory hardly rests between layers. Larger batches go to cuBLAS.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.ahead import launch
from octavo.early import early_options

MOST_ROWS = 64
"""Up to here reading the weights takes longer than multiplying."""

_STAGES = 5  # tiles of the weight on their way at a time


@triton.jit
def _vector_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    outputs,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token: each program reads BLOCK_N whole rows of the weight."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    at = weight_ptr + tl.minimum(n, outputs - 1)[:, None].to(tl.int64) * WIDTH + k[None, :]
    first = tl.load(at)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = first.to(tl.float32) * tl.load(x_ptr + k)[None, :].to(tl.float32)
    for done in tl.static_range(BLOCK_K, WIDTH, BLOCK_K):
        acc += tl.load(at + done).to(tl.float32) * tl.load(x_ptr + done + k)[None, :].to(tl.float32)
    total = tl.sum(acc, 1)
    if BIAS:
        total += tl.load(bias_ptr + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(out_ptr + n, total.to(out_ptr.dtype.element_ty), mask=n < outputs)


@triton.jit(do_not_specialize=["rows", "split"])
def _skinny_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counters_ptr,
    rows,
    outputs,
    width,
    x_stride,
    split,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Up to BLOCK_M tokens on tensor cores: the weight's rows are the tall side, and its columns are split."""
    tile = tl.program_id(0)
    part = tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    steps = width // BLOCK_K // split
    k = part * steps * BLOCK_K + tl.arange(0, BLOCK_K)
    weight_at = weight_ptr + tl.minimum(n, outputs - 1)[:, None].to(tl.int64) * width + k[None, :]
    x_at = x_ptr + m[None, :] * x_stride + k[:, None]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(steps):
        weight = tl.load(weight_at + step * BLOCK_K)
        x = tl.load(x_at + step * BLOCK_K, mask=m[None, :] < rows, other=0.0)
        acc = tl.dot(weight, x, acc)
    missing = split - 1  # parts of others that are not there yet
    if split > 1:
        # Whoever finishes last adds the parts up, always in the same order.
        slab: tl.constexpr = BLOCK_N * BLOCK_M
        at = partial_ptr + tile * (split * slab) + tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        tl.store(at + part * slab, acc)
        tl.debug_barrier()
        missing -= tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if missing == 0:
            acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for each in range(split):
                acc += tl.load(at + each * slab, cache_modifier=".cg")
            tl.store(counters_ptr + tile, 0)  # ready for the next launch
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
    inside = (m[None, :] < tl.where(missing == 0, rows, 0)) & (n[:, None] < outputs)
    tl.store(out_ptr + m[None, :] * outputs + n[:, None], acc.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the weight is cut: ``split`` programs share its columns."""

    block_n: int
    block_k: int
    split: int


def skinny_tiles(outputs: int, width: int, processors: int) -> Tiles | None:
    """Found on an H200: one program a processor at least, or two to split the columns. ``None``: no fit."""
    tiles = triton.cdiv(outputs, 64)
    split = 1 if tiles >= processors else 2 if 2 * tiles * 1.1 >= processors else 4
    while split > 1 and width % (128 * split):
        split //= 2
    if width % (128 * split):
        return None
    return Tiles(64, 128, split)


@dataclass(slots=True)
class Linear:
    """See :func:`octavo.ops.reference.linear`. Scratch memory is never given back: graphs hold its addresses."""

    processors: int
    early: bool
    partials: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    counters: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        dtype = dtype or x.dtype
        (rows, width), outputs = x.shape, weight.shape[0]
        plain = weight.is_contiguous() and x.stride(-1) == 1 and x.dtype == weight.dtype and x.element_size() == 2
        if plain and rows == 1 and vector_step(width):
            out = torch.empty((1, outputs), dtype=dtype, device=x.device)
            self._vector(x, weight, bias, out)
            return out
        tiles = skinny_tiles(outputs, width, self.processors) if plain and 0 < rows <= MOST_ROWS else None
        if tiles is not None:
            out = torch.empty((rows, outputs), dtype=dtype, device=x.device)
            self._skinny(x, weight, bias, out, tiles)
            return out
        if dtype == x.dtype:
            return F.linear(x, weight, bias)
        if bias is None and x.is_cuda:
            return torch.mm(x, weight.t(), out_dtype=dtype)
        return F.linear(x, weight, bias).to(dtype)

    def _vector(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        outputs, width = weight.shape
        launch(
            _vector_kernel,
            (triton.cdiv(outputs, 2),),
            x,
            weight,
            out if bias is None else bias,
            out,
            outputs,
            WIDTH=width,
            BIAS=bias is not None,
            BLOCK_N=2,
            BLOCK_K=vector_step(width),
            num_warps=4,
            **early_options(self.early),
        )

    def _skinny(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        tiles: Tiles,
    ) -> None:
        (rows, width), outputs = x.shape, weight.shape[0]
        count, block_m = triton.cdiv(outputs, tiles.block_n), max(16, triton.next_power_of_2(rows))
        partial = self._kept(self.partials, count * tiles.split * tiles.block_n * block_m, torch.float32, x.device)
        launch(
            _skinny_kernel,
            (count, tiles.split),
            x,
            weight,
            out if bias is None else bias,
            out,
            partial,
            self._kept(self.counters, count, torch.int32, x.device),
            rows,
            outputs,
            width,
            x.stride(0),
            tiles.split,
            BIAS=bias is not None,
            BLOCK_M=block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            num_warps=4,
            num_stages=_STAGES,
            **early_options(self.early),
        )

    @staticmethod
    def _kept(
        store: dict[tuple[int, str], torch.Tensor], size: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """At least ``size`` numbers, zeros at first."""
        size = max(1 << 16, triton.next_power_of_2(size))
        if (size, device.type) not in store:
            store[size, device.type] = torch.zeros(size, dtype=dtype, device=device)
        return store[size, device.type]


def vector_step(width: int) -> int:
    """Columns that the one-token kernel takes at a time; 0 where it does not fit."""
    step = next((step for step in (2048, 1024, 512) if width % step == 0 and (step < 2048 or width > 8192)), 0)
    return step if step and width // step <= 16 else 0
