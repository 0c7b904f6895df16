"""Which adapter is in which device slot, who uses it, and who may take the next one.

A running request holds its adapter's slot; a slot that nobody holds keeps its adapter until another needs the
place, the least recently used one first. A request whose adapter is in no slot, when all are held, waits; requests
behind it whose adapters are there go on, but not for ever: after ``PATIENCE`` steps nobody behind it may hold a
slot anew, so that one comes free when the running requests end.

An adapter may also be ``absent``: on disk, and not in host memory. Its requests wait, and say so in ``wanted``;
nobody else is held up.

Where several adapters (or one and the base model) have requests, each has an equal share of the rows. Requests
above it take what rows the others leave, so that a flood of one adapter's requests doesn't keep the others waiting.

Adapters are known by key. A key stands for the same contents for all its life, so that a name may be given to other
contents while requests that began with the old ones still run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from octavo.cache.blocks import EngineInvariantError

PATIENCE: Final = 64


class AdapterSlots:
    """Slots 1 to ``count``; key 0 is the base model, which needs none."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.changes: list[tuple[int, int]] = []  # (slot, key or 0) since the last plan
        self.on_drop: Callable[[int], None] = lambda key: None  # a retired key has lost its last request
        self.absent: set[int] = set()
        self.wanted: dict[int, None] = {}  # absent keys that requests wait for, in the order of asking
        self._free = list(range(count, 0, -1))
        self._slots: dict[int, int] = {}  # by key, least recently used first
        self._running: Counter[int] = Counter()
        self._unfinished: Counter[int] = Counter()
        self._pinned: set[int] = set()
        self._retired: set[int] = set()
        self._waiting_since: dict[int, int] = {}  # step in which a key was first found without a slot
        self._step, self._closed = 0, False  # the round of admissions; whether slots are given out no more in it
        self._share, self._base_running = 0, 0

    def __len__(self) -> int:
        """Slots with an adapter in them."""
        return len(self._slots)

    def users(self, key: int) -> int:
        """Unfinished requests of an adapter."""
        return self._unfinished[key]

    def waits(self, key: int) -> bool:
        """Whether an adapter has requests and no slot."""
        return key in self._unfinished and key not in self._slots

    def enter(self, key: int) -> None:
        """A request of this adapter has come."""
        if key:
            self._unfinished[key] += 1

    def leave(self, key: int) -> None:
        """A request of this adapter has ended; it holds no slot."""
        if not key:
            return
        self._unfinished[key] -= 1
        if not self._unfinished[key]:
            del self._unfinished[key]
            self._waiting_since.pop(key, None)
            if key in self._retired:
                self._drop(key)

    def begin(self, step: int, rows: int) -> None:
        """A round of admissions for a step, to share ``rows`` rows. There may be several for one number, as a step
        can come to nothing."""
        self._step, self._closed = step, False
        self._share = -(-rows // (len(self._unfinished) + 1))

    def crowded(self, key: int) -> bool:
        """Whether an adapter, or the base model, has its share of the rows. Never where there is but one."""
        if not self._unfinished:
            return False
        return (self._running[key] if key else self._base_running) >= self._share

    def admits(self, key: int) -> bool:
        """Whether a request may run now. Ask in the order in which requests should be served."""
        if not key:
            return True
        if key in self.absent and key not in self._slots:
            self.wanted[key] = None
            return False
        if self._closed:
            return False
        if key in self._slots or self._free or self._idle() is not None:
            return True
        self._closed = self._step - self._waiting_since.setdefault(key, self._step) >= PATIENCE
        return False

    def acquire(self, key: int) -> int:
        """A request begins to run: its adapter's slot, into which it is put if need be (0: the base model)."""
        if not key:
            self._base_running += 1
            return 0
        self._waiting_since.pop(key, None)
        self._running[key] += 1
        slot = self._slots.pop(key, 0) or self._place(key)
        self._slots[key] = slot  # the most recently used
        return slot

    def release(self, key: int) -> None:
        """A request stops running."""
        if not key:
            self._base_running -= 1
            return
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]

    def can_pin(self) -> bool:
        """One slot at least stays open to everybody."""
        return len(self._pinned) + 1 < self.count

    def pin(self, key: int) -> None:
        """The adapter keeps its slot, or the next one that it gets, until it is retired."""
        if not self.can_pin():
            raise EngineInvariantError(f"{len(self._pinned)} of {self.count} adapter slots are pinned already.")
        self._pinned.add(key)

    def retire(self, key: int) -> None:
        """No request of this adapter will come any more. It is dropped when the last one has ended."""
        self._pinned.discard(key)
        self._retired.add(key)
        if not self._unfinished[key]:
            self._drop(key)

    def check(self, running: Counter[int], unfinished: Counter[int]) -> None:
        """Compare with the scheduler's requests, counted by key; raises :class:`EngineInvariantError`."""
        slots = sorted([*self._slots.values(), *self._free])
        if slots != list(range(1, self.count + 1)):
            raise EngineInvariantError(
                f"Adapter slots in use and free are not 1 to {self.count}, each once: {slots}."
            )
        if +self._running != running or +self._unfinished != unfinished:
            raise EngineInvariantError(
                f"Adapters are used by {dict(self._running)} running and {dict(self._unfinished)} unfinished "
                f"requests, not by {dict(running)} and {dict(unfinished)}."
            )
        if not running.keys() <= self._slots.keys():
            raise EngineInvariantError("A request runs without its adapter's slot.")

    def _place(self, key: int) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            idle = self._idle()
            if idle is None:
                raise EngineInvariantError("An adapter was admitted without a slot.")
            slot = self._slots.pop(idle)
        self.changes.append((slot, key))
        return slot

    def _idle(self) -> int | None:
        """The least recently used adapter whose slot may be taken."""
        return next((key for key in self._slots if key not in self._running and key not in self._pinned), None)

    def _drop(self, key: int) -> None:
        self._retired.discard(key)
        self.absent.discard(key)
        self.wanted.pop(key, None)
        slot = self._slots.pop(key, 0)
        if slot:
            self._free.append(slot)
            self.changes = [change for change in self.changes if change[0] != slot]
            self.changes.append((slot, 0))
        self.on_drop(key)
