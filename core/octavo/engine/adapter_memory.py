"""Which adapters are in host memory: the most recently used, up to a limit; the others stay on disk.

An adapter that requests wait for is never put out before they have had it on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """An adapter on disk, as it was when it was taken: to be read again when need be."""

    path: str
    digest: str
    nbytes: int


class AdapterMemory:
    """Books by key. ``waits(key)`` says whether requests wait for the adapter; ``evict(key)`` is told of those that
    are put out. ``limit`` in bytes is of one rank's memory; a single adapter may always be there."""

    def __init__(self, limit: int, waits: Callable[[int], bool], evict: Callable[[int], None]) -> None:
        self.limit = limit
        self.stored: dict[int, Stored] = {}
        self._waits, self._evict = waits, evict
        self._held: OrderedDict[int, int] = OrderedDict()  # bytes, least recently used first

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters in host memory."""
        return sum(self._held.values())

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def hold(self, key: int, stored: Stored) -> None:
        """An adapter is in host memory now, others may have to go."""
        self.stored[key] = stored
        self._held[key] = stored.nbytes
        self._put_out(self.limit, but=key)

    def touch(self, key: int) -> None:
        """A request has come for an adapter."""
        if key in self._held:
            self._held.move_to_end(key)

    def size_of(self, key: int) -> int:
        """Bytes that an adapter takes in host memory; 0 for one that is served no longer."""
        return self.stored[key].nbytes if key in self.stored else 0

    def make_room(self, nbytes: int, coming: int) -> bool:
        """Put out what is idle until ``nbytes`` fit beside what is there and is coming; False if they don't."""
        self._put_out(self.limit - nbytes - coming)
        used = self.nbytes + coming
        return not used or used + nbytes <= self.limit

    def _put_out(self, most: int, but: int = 0) -> None:
        for key in list(self._held):
            if self.nbytes <= most:
                return
            if key != but and not self._waits(key):
                del self._held[key]
                self._evict(key)

    def forget(self, key: int) -> None:
        """An adapter is served no longer."""
        self.stored.pop(key, None)
        self._held.pop(key, None)
