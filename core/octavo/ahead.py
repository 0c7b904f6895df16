"""Kernels compiled ahead of their first launch, many at a time, while weights are read.

A plugin launches its Triton kernels through :func:`launch`. With tensors on the meta device, which have a type and
a shape but no memory, that only compiles, in the background; so a model built on that device and run for one step
compiles all that its steps will need. Its records then say ``compiles_ahead``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Compilations:
    """Compilations under way. Triton lets go of the interpreter's lock meanwhile, so threads are enough."""

    pool: Executor
    futures: dict[tuple[Any, ...], Future[Any]] = field(default_factory=dict)

    def add(self, kernel: Any, grid: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Compile ``kernel`` for such arguments, unless it is being done."""
        alike = (*map(_kind, args), *sorted((name, str(value)) for name, value in options.items()))
        key = (id(kernel), *alike)
        if key not in self.futures:
            first = next(iter(self.futures.values()), None)
            self.futures[key] = self.pool.submit(_compile, first, kernel, args, grid, options)

    def wait(self) -> None:
        """Until all have ended. What failed is compiled again by its first launch, which then tells why."""
        for future in self.futures.values():
            future.exception()
        self.pool.shutdown()


_current: ContextVar[Compilations | None] = ContextVar("octavo_compilations", default=None)


@contextlib.contextmanager
def compiling(pool: Executor) -> Iterator[Compilations]:
    """Within, launches with meta tensors are compiled by ``pool``. They may outlast it: see ``wait``."""
    compilations = Compilations(pool)
    token = _current.set(compilations)
    try:
        yield compilations
    finally:
        _current.reset(token)


def launch(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
    """Launch a Triton kernel over ``grid``; where its first argument is a meta tensor, only compile it.

    ``args`` are its run-time arguments in order, ``options`` its constants and the compiler's options by name.
    """
    if not getattr(args[0], "is_meta", False):
        kernel[grid](*args, **options)
        return
    compilations = _current.get()
    if compilations is not None:
        compilations.add(kernel, grid, args, options)


def _compile(
    first: Future[Any] | None, kernel: Any, args: tuple[Any, ...], grid: Any, options: dict[str, Any]
) -> None:
    """Compile behind the first of all, which finds out things that no other then has to, such as what the
    compiler itself consists of."""
    if first is not None:
        first.exception()
    kernel.warmup(*args, grid=grid, **options)


def _kind(argument: Any) -> Any:
    """What of an argument a compiled kernel may depend on."""
    dtype = getattr(argument, "dtype", None)
    return argument if dtype is None else str(dtype)
