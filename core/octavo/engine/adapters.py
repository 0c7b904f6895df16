"""The adapters that an engine serves, by name: loaded and unloaded while it runs.

Reading an adapter happens on a thread of its own, so that requests which don't need it are not held up. A name that
is loaded again stands for the new contents from then on; requests that began with the old ones end with them.

Host memory for adapters has a limit. One that was put out is read again when a request needs it; should the file
hold something else by then, those requests fail, since their prompts may be cached for what was there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from octavo.config.launch import LoraSection
from octavo.config.schema import AdapterSection
from octavo.contracts.lora import AdapterExecutor, AdapterFacts, ServedAdapter
from octavo.engine.adapter_memory import AdapterMemory, Stored
from octavo.engine.failures import describe
from octavo.engine.messages import AdapterReply, LoadAdapter, UnloadAdapter
from octavo.errors import CheckpointError, ConfigError, NotFoundError, PluginError, RequestError, nearest
from octavo.scheduling.adapters import AdapterSlots

_log = logging.getLogger("octavo.engine")


class Adapters:
    """Belongs to the engine's thread. ``executor`` has the weights, ``slots`` the places on the device; adapters in
    host memory take at most ``limit`` bytes."""

    def __init__(self, executor: AdapterExecutor, slots: AdapterSlots, limit: int) -> None:
        self._executor, self._slots = executor, slots
        self.memory = AdapterMemory(limit, slots.waits, self._evict)
        self._served: dict[str, tuple[int, ServedAdapter]] = {}
        self._next_key = 1
        self._reading: list[tuple[LoadAdapter, int, Future[AdapterFacts]]] = []
        self._fetching: dict[int, Future[AdapterFacts]] = {}  # by key: adapters that are read again
        self._lost: list[tuple[int, str]] = []
        self._unwanted: set[int] = set()  # keys that are being read and were unloaded meanwhile
        self._leaving: dict[int, UnloadAdapter] = {}
        self._replies: list[AdapterReply] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-adapters")
        slots.on_drop = self._dropped

    @property
    def busy(self) -> bool:
        """Whether an adapter is being read, or should be, or an answer is ready."""
        return bool(self._reading or self._replies or self._fetching or self._slots.wanted)

    def listing(self) -> list[ServedAdapter]:
        """All that may be asked for."""
        return [adapter for _, adapter in self._served.values()]

    def find(self, name: str) -> tuple[int, ServedAdapter]:
        """Key and facts of an adapter; raises :class:`NotFoundError`."""
        if name not in self._served:
            raise NotFoundError(
                f"there is no adapter {name!r} in this engine.{nearest(name, self._served)}",
                param="model",
                code="model_not_found",
            )
        self.memory.touch(self._served[name][0])
        return self._served[name]

    def open(self, sections: Sequence[AdapterSection]) -> None:
        """Load the configuration's adapters. Raises :class:`CheckpointError`, or :class:`ConfigError`."""
        for index, section in enumerate(sections):
            key = self._new_key()
            try:
                facts = self._executor.add_adapter(key, section.path)
                self._serve(key, LoadAdapter(0, section.name, section.path, section.pinned), facts)
            except RequestError as error:
                raise ConfigError(str(error), f"lora.adapters.{index}") from error

    def load(self, message: LoadAdapter) -> None:
        """Begin to read an adapter; ``poll`` brings the answer."""
        key = self._new_key()
        self._reading.append((message, key, self._thread.submit(self._executor.add_adapter, key, message.path)))

    def unload(self, message: UnloadAdapter) -> None:
        """No request may name the adapter from now on; ``poll`` answers when the last that did has ended."""
        try:
            key, _ = self.find(message.name)
        except NotFoundError as error:
            self._replies.append(AdapterReply(message.ticket, message.name, None, describe(error)))
            return
        del self._served[message.name]
        self._unwanted |= {key for asked, key, _ in self._reading if asked.name == message.name}
        self._leaving[key] = message
        self._slots.retire(key)

    def poll(self) -> list[AdapterReply]:
        """Answers that have become ready. Adapters come into use here, in the order they were asked for."""
        while self._reading and self._reading[0][2].done():
            self._finish(*self._reading.pop(0))
        for key in [key for key, future in self._fetching.items() if future.done()]:
            self._fetched(key, self._fetching.pop(key))
        self._fetch()
        replies, self._replies = self._replies, []
        return replies

    def lost(self) -> list[tuple[int, str]]:
        """Adapters that could not be read again, by key, and why: since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def stop(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _fetch(self) -> None:
        """Begin to read the adapters again that requests wait for, as far as they fit."""
        for key in list(self._slots.wanted):
            stored = self.memory.stored[key]
            coming = sum(self.memory.size_of(other) for other in self._fetching)
            if key not in self._fetching and self.memory.make_room(stored.nbytes, coming):
                self._fetching[key] = self._thread.submit(self._executor.add_adapter, key, stored.path)
        self._slots.wanted.clear()

    def _fetched(self, key: int, future: Future[AdapterFacts]) -> None:
        stored = self.memory.stored.get(key)
        try:
            facts = future.result()
        except Exception as error:
            if stored is not None:
                self._lost.append((key, f"the adapter could not be read again: {error}"))
            return
        if stored is None:  # unloaded meanwhile
            self._executor.remove_adapter(key)
        elif facts.digest != stored.digest:
            self._executor.remove_adapter(key)
            self._lost.append((key, f"the adapter at {stored.path} was changed; it must be loaded anew."))
        else:
            self._slots.absent.discard(key)
            self.memory.hold(key, stored)

    def _evict(self, key: int) -> None:
        self._slots.absent.add(key)
        self._executor.remove_adapter(key)

    def _finish(self, message: LoadAdapter, key: int, future: Future[AdapterFacts]) -> None:
        try:
            facts = future.result()
            if key in self._unwanted:
                self._unwanted.discard(key)
                self._executor.remove_adapter(key)
                raise RequestError(f"adapter {message.name!r} was unloaded while it was being read.", param="name")
            served = self._serve(key, message, facts)
        except Exception as error:
            self._replies.append(AdapterReply(message.ticket, message.name, None, describe(_refusal(error))))
        else:
            self._replies.append(AdapterReply(message.ticket, message.name, served, None))

    def _serve(self, key: int, wanted: LoadAdapter, facts: AdapterFacts) -> ServedAdapter:
        served = ServedAdapter(
            name=wanted.name,
            path=wanted.path,
            digest=facts.digest,
            rank=facts.rank,
            nbytes=facts.nbytes,
            pinned=wanted.pinned,
        )
        old = self._served.get(wanted.name)
        stored = Stored(served.path, facts.digest, facts.nbytes)
        if old is not None and (old[1].digest, old[1].pinned) == (served.digest, served.pinned):
            self._executor.remove_adapter(key)  # the same again: what is cached of it stays good
            self.memory.stored[old[0]] = stored
            self._served[wanted.name] = (old[0], served)
            return served
        freed = old is not None and old[1].pinned
        if wanted.pinned and not freed and not self._slots.can_pin():
            self._executor.remove_adapter(key)
            raise RequestError(
                f"adapter {wanted.name!r} can't be pinned: of {self._slots.count} adapter slots, one must stay "
                f"open to the others. Raise lora.options.max_loaded.",
                param="pinned",
            )
        self._served[wanted.name] = (key, served)
        if old is not None:
            self._slots.retire(old[0])
        if wanted.pinned:
            self._slots.pin(key)
        self.memory.hold(key, stored)
        return served

    def _dropped(self, key: int) -> None:
        self.memory.forget(key)
        self._executor.remove_adapter(key)
        message = self._leaving.pop(key, None)
        if message is not None:
            self._replies.append(AdapterReply(message.ticket, message.name, None, None))

    def _new_key(self) -> int:
        self._next_key += 1
        return self._next_key - 1


def build_adapters(executor: Any, name: str, section: LoraSection) -> tuple[Adapters, AdapterSlots]:
    """The configuration's adapters in host memory, and the slots for the scheduler.

    Raises what :meth:`Adapters.open` raises, and :class:`PluginError` when the executor called ``name`` can't serve
    adapters.
    """
    if not isinstance(executor, AdapterExecutor):
        raise PluginError(
            f"executor {name!r} can't serve LoRA adapters: take out the lora section, or use another."
        )
    slots = AdapterSlots(executor.adapter_slots)
    adapters = Adapters(executor, slots, int(section.host_memory_gib * 2**30))
    adapters.open(section.adapters)
    return adapters, slots


def _refusal(error: Exception) -> Exception:
    """A bad adapter is the fault of whoever asked for it; everything else is told as it is."""
    if isinstance(error, CheckpointError):
        return RequestError(str(error), param="path", code="invalid_adapter")
    if not isinstance(error, RequestError):
        _log.error("an adapter could not be loaded", exc_info=error)
        failure = RequestError(
            f"the adapter could not be loaded: {type(error).__name__}: {error}", code="internal_error"
        )
        failure.status = 500
        return failure
    return error
