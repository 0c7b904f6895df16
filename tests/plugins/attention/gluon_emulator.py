"""Enough of Gluon in numpy to run the Hopper kernel's logic on a CPU: partitions are threads, barriers block.

It is stricter than the hardware where that finds mistakes: a copy fills its target with NaN and arrives later, a
product reads its operands only when it is waited for, an unfinished product cannot be computed with, and a barrier
that nobody completes is an error. Layouts, fences and registers are not looked at.
"""

from __future__ import annotations

import importlib
import math
import queue
import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

PATIENCE = 20.0  # seconds before a wait is called a deadlock
_monitor = threading.Condition()
_here = threading.local()
_program: dict[str, int] = {}
_copies: queue.Queue[Any] = queue.Queue()


class Value(np.ndarray):
    """A register tensor."""

    @property
    def type(self) -> Any:
        return SimpleNamespace(layout=None)

    def to(self, dtype: Any) -> Value:
        return value(self.astype(dtype))


def value(array: Any) -> Value:
    return np.asarray(array).view(Value)


@dataclass
class Pointer:
    """Elements of a flat array, at one or many offsets."""

    memory: np.ndarray
    offset: Any = 0

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.memory, self.offset + other)


@dataclass
class Barrier:
    count: int = 0
    arrived: int = 0
    expected: int = 0
    phase: int = 0

    def settle(self) -> None:
        if self.arrived == self.count and self.expected == 0:
            self.arrived, self.phase = 0, self.phase + 1
            _monitor.notify_all()
        assert self.arrived <= self.count, "more arrivals than the barrier counts"


@dataclass
class Shared:
    """A shared-memory tensor or a view of one."""

    array: np.ndarray

    dtype = property(lambda self: self.array.dtype)
    shape = property(lambda self: self.array.shape)

    def index(self, i: Any) -> Any:
        found = self.array[int(i)]
        return found[0] if self.array.dtype == object else Shared(found)

    def slice(self, start: int, length: int) -> Shared:
        return Shared(self.array[start : start + length])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.array.transpose(order))

    def store(self, what: Any) -> None:
        assert what.dtype == self.array.dtype
        self.array[...] = what

    def load(self, _layout: Any) -> Value:
        return value(self.array.copy())


@dataclass
class Product:
    """A matrix product in flight; ``acc`` is the accumulator it adds to."""

    a: Any
    b: Shared
    acc: Any
    use_acc: bool
    type = SimpleNamespace(layout=None)

    def result(self) -> Value:
        a, b = (getattr(operand, "array", operand).astype(np.float32) for operand in (self.a, self.b))
        return value(a @ b + (self.acc if self.use_acc else 0)).astype(np.float32)


@dataclass
class Descriptor:
    rows: np.ndarray
    block_shape: list[int]
    dtype: Any = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = self.rows.dtype

    @staticmethod
    def from_tensor(tensor: torch.Tensor, block_shape: list[int], _layout: Any) -> Descriptor:
        return Descriptor(tensor.numpy(), block_shape)


def _fetch(descriptor: Descriptor, coordinates: list[Any], barrier: Barrier, target: Shared) -> None:
    assert list(target.shape) == descriptor.block_shape
    target.array[...] = math.nan
    _copies.put((descriptor, int(coordinates[0]), barrier, target))


def _copy_engine() -> None:
    while (item := _copies.get()) is not None:
        descriptor, first, barrier, target = item
        count, width = descriptor.rows.shape
        rows = first + np.arange(descriptor.block_shape[0])
        inside = (rows >= 0) & (rows < count)
        target.array[...] = 0
        target.array[inside, :width] = descriptor.rows[rows[inside]]
        with _monitor:
            barrier.expected -= target.array.nbytes
            barrier.settle()


def _wait(barrier: Barrier, parity: Any) -> None:
    with _monitor:
        done = _monitor.wait_for(lambda: barrier.phase % 2 != int(parity), PATIENCE)
    assert done, "deadlock: nobody completes this barrier"


def _arrive(barrier: Barrier, count: int = 1) -> None:
    with _monitor:
        barrier.arrived += count
        barrier.settle()


def _expect(barrier: Barrier, size: int) -> None:
    with _monitor:
        barrier.expected += size
        barrier.arrived += 1
        barrier.settle()


def _multiply(a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> Product:
    assert is_async
    made = Product(a, b, acc, use_acc)
    _here.flying.append(made)
    return made


def _multiply_wait(outstanding: int, deps: list[Any]) -> Any:
    flying = _here.flying
    finished = {id(product): product.result() for product in flying[: len(flying) - outstanding]}
    _here.flying = flying[len(flying) - outstanding :]
    results = tuple(finished.get(id(dep), dep) for dep in deps)
    return results[0] if len(results) == 1 else results


def _load(pointer: Pointer, mask: Any = True, other: Any = 0) -> Value:
    offset = np.asarray(pointer.offset)
    keep = np.broadcast_to(np.asarray(mask), offset.shape)
    found = pointer.memory[np.where(keep, offset, 0)]
    return value(np.where(keep, found, np.asarray(other, dtype=pointer.memory.dtype)))


def _store(pointer: Pointer, what: Any, mask: Any) -> None:
    keep = np.broadcast_to(mask, what.shape)
    pointer.memory[np.asarray(pointer.offset)[keep]] = np.asarray(what)[keep]


def _allocate(dtype: Any, shape: list[int], layout: Any) -> Shared:
    if layout == "barriers":
        return Shared(np.array([[Barrier()] for _ in range(shape[0])], dtype=object))
    return Shared(np.full(shape, math.nan, dtype=dtype))


def _specialize(partitions: list[Any], _warps: Any, _registers: Any) -> None:
    failures: list[BaseException] = []

    def run(function: Any, arguments: Any) -> None:
        _here.flying = []
        try:
            function(*arguments)
            assert not _here.flying
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=part, daemon=True) for part in partitions]
    threads.append(threading.Thread(target=_copy_engine, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads[:-1]:
        thread.join()
    _copies.put(None)
    threads[-1].join()
    if failures:
        raise failures[0]


class _Kernel:
    """What ``gluon.jit`` makes: a function that other kernels call and that a grid launches."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, num_warps: int, maxnreg: int, **constants: Any) -> None:
            given = [_argument(argument) for argument in arguments]
            for program in range(grid[0]):
                _program.update(id=program, count=grid[0])
                self.function(*given, **constants)

        return launch


def _argument(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        size = argument.untyped_storage().nbytes() // argument.element_size() - argument.storage_offset()
        return Pointer(argument.as_strided((size,), (1,)).numpy())
    return argument


def _jit(function: Any = None, **_options: Any) -> Any:
    return _jit if function is None else _Kernel(function)


def import_over_emulation(*names: str) -> None:
    """Import modules that import Gluon, with the emulation in its place; everything else keeps the real one."""
    assert not set(names) & set(sys.modules), "imported before, over the real Gluon"
    emulated = _modules()
    real = {name: sys.modules.pop(name) for name in emulated if name in sys.modules}
    sys.modules.update(emulated)
    for name in names:
        importlib.import_module(name)
    for name in emulated:
        del sys.modules[name]
    sys.modules.update(real)


def _modules() -> dict[str, ModuleType]:
    root = "triton.experimental.gluon"
    language = SimpleNamespace(
        int64=np.int64,
        float32=np.float32,
        constexpr=int,
        static_range=range,
        load=_load,
        store=_store,
        allocate_shared_memory=_allocate,
        warp_specialize=_specialize,
        program_id=lambda _axis: _program["id"],
        num_programs=lambda _axis: _program["count"],
        arange=lambda begin, end, _layout: value(np.arange(begin, end)),
        zeros=lambda shape, dtype, _layout: value(np.zeros(shape, dtype)),
        full=lambda shape, fill, dtype, _layout: value(np.full(shape, fill, dtype)),
        convert_layout=lambda what, _layout: what,
        where=lambda condition, a, b: value(np.where(condition, a, b)),
        max=lambda what, axis: value(np.max(np.asarray(what), axis=axis)),
        sum=lambda what, axis: value(np.sum(np.asarray(what), axis=axis)),
        maximum=lambda a, b: value(np.maximum(a, b)),
        minimum=lambda a, b: value(np.minimum(a, b)),
        exp2=lambda what: value(np.exp2(what)),
    )
    for layout in ("Slice", "Blocked", "NVMMADistributed", "DotOperand", "NVMMAShared"):
        setattr(language, f"{layout}Layout", lambda *_, **__: "layout")
    barriers = SimpleNamespace(
        init=lambda barrier, count: setattr(barrier, "count", count),
        wait=_wait,
        arrive=_arrive,
        expect=_expect,
        MBarrierLayout=lambda: "barriers",
    )
    contents = {
        root: {"jit": _jit, "language": language},
        f"{root}.language": vars(language),
        f"{root}.language.nvidia.hopper": {
            "fence_async_shared": lambda: None,
            "mbarrier": barriers,
            "tma": SimpleNamespace(async_load=_fetch),
            "warpgroup_mma": _multiply,
            "warpgroup_mma_wait": _multiply_wait,
        },
        f"{root}.nvidia.hopper": {"TensorDescriptor": Descriptor},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, names in contents.items():
        vars(modules[name]).update(names)
    modules["triton.experimental"] = ModuleType("triton.experimental")
    vars(modules["triton.experimental"])["gluon"] = modules[root]
    return modules
