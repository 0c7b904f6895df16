"""Streams of deltas: several prompts as one stream, and looking at the first delta before answering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Generic, TypeVar

from octavo.contracts.api import Delta

T = TypeVar("T")
Deltas = AsyncGenerator[tuple[int, Delta], None]
"""Deltas with the number of the prompt that they answer."""


async def merge(streams: Sequence[AsyncIterator[Delta]]) -> Deltas:
    """All streams at once. The first error ends them all; closing this closes them all."""
    if len(streams) == 1:
        try:
            async for delta in streams[0]:
                yield 0, delta
        finally:
            await close(streams[0])
        return
    # One slot: a reader that stops reading stops the pumps.
    queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue(1)
    pumps = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    open_streams = len(pumps)
    try:
        while open_streams:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int, stream: AsyncIterator[Delta], queue: asyncio.Queue[tuple[int, Delta] | BaseException | None]
) -> None:
    try:
        async for delta in stream:
            await queue.put((index, delta))
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
    finally:
        await close(stream)


async def close(stream: AsyncIterator[object]) -> None:
    """Close a generator; other iterators have nothing to close."""
    closer = getattr(stream, "aclose", None)
    if closer is not None:
        await closer()


class Primed(Generic[T]):
    """A stream whose first item was waited for. ``aclose`` works whether or not iteration began."""

    def __init__(self, stream: AsyncGenerator[T, None]) -> None:
        self._stream = stream
        self._first: asyncio.Future[T] | None = asyncio.ensure_future(anext(stream))

    async def wait(self, patience: float) -> None:
        """Wait up to ``patience`` seconds. An error that comes in that time is raised here, the stream closed."""
        assert self._first is not None
        try:
            await asyncio.wait({self._first}, timeout=patience)
            if self._first.done() and not isinstance(self._first.exception(), StopAsyncIteration):
                self._first.result()
        except BaseException:
            await self.aclose()
            raise

    def __aiter__(self) -> Primed[T]:
        return self

    async def __anext__(self) -> T:
        if self._first is None:
            return await anext(self._stream)
        item = await self._first
        self._first = None
        return item

    async def aclose(self) -> None:
        """Close the stream."""
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._stream.aclose()
