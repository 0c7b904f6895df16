"""Grammars: compiled in threads, kept by content, and the requests that wait for theirs.

A bad grammar costs its own request a refusal. A slow one costs it the wait: others go on. A thread can't be
stopped, so what bounds a compilation is the backend's limits; the timeout bounds what the client waits.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import msgspec

from octavo.config.schema import StructuredLimits
from octavo.contracts.structured import Grammar, StructuredBackend, Vocabulary
from octavo.engine.messages import Submit
from octavo.errors import OverloadedError, RequestError
from octavo.structured import StructuredOutputs


@dataclass(frozen=True, slots=True)
class Built:
    """A backend and the vocabulary that it was built for."""

    backend: StructuredBackend
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class _Waiting:
    submit: Submit
    grammar: Future[Grammar]
    deadline: float


class Grammars:
    """Belongs to the engine's thread. ``build`` makes the backend; it is called when the first request needs it."""

    def __init__(
        self,
        build: Callable[[], Built],
        limits: StructuredLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build, self._limits, self._clock = build, limits, clock
        self._threads = ThreadPoolExecutor(limits.compile_threads, thread_name_prefix="octavo-grammars")
        self._built: Future[Built] | None = None
        self._cache: OrderedDict[StructuredOutputs, Future[Grammar]] = OrderedDict()
        self._waiting: list[_Waiting] = []
        self._taken: dict[int, Future[Grammar]] = {}  # by request: compiled, and not to be forgotten meanwhile

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def built(self) -> Built:
        """The backend; there is one once a grammar was compiled."""
        if self._built is None:
            raise RuntimeError("No grammar was asked for yet.")
        return self._built.result()

    def check(self, wanted: StructuredOutputs) -> None:
        """Refuse what is beyond the operator's limits, with :class:`RequestError`."""
        wanted.check_limits(self._limits.max_bytes, self._limits.max_depth)

    def get(self, submit: Submit, wanted: StructuredOutputs, most: int) -> Grammar | None:
        """The grammar that ``submit`` wants; ``None`` while it is being compiled, for which it then waits, unless
        ``most`` others do. Raises what compiling raised."""
        future = self._taken.pop(submit.id, None) or self._compiled(wanted)
        if future.done():
            return future.result()
        if len(self._waiting) >= most:
            raise OverloadedError(f"{most} requests are waiting for their grammars, the most that is allowed.")
        self._waiting.append(_Waiting(submit, future, self._clock() + self._limits.compile_timeout))
        return None

    def prepare(self, submit: Submit, wanted: StructuredOutputs) -> None:
        """Wait for the grammar, and keep it for ``get``. Raises :class:`RequestError` for one that is wrong or
        takes too long."""
        future = self._compiled(wanted)
        if not wait([future], self._limits.compile_timeout).done:
            raise self._too_slow(future)
        future.result()
        self._taken[submit.id] = future

    def poll(self) -> list[tuple[Submit, RequestError | None]]:
        """The requests that wait no longer, and for those that waited in vain the refusal."""
        now, ready, left = self._clock(), list[tuple[Submit, RequestError | None]](), []
        for item in self._waiting:
            if item.grammar.done():
                self._taken[item.submit.id] = item.grammar
                ready.append((item.submit, None))
            elif now > item.deadline:
                ready.append((item.submit, self._too_slow(item.grammar)))
            else:
                left.append(item)
        self._waiting = left
        return ready

    def forget(self, ids: Collection[int]) -> None:
        """These answers are not wanted any more. A request goes when none of its answers is."""
        for answer in ids:
            self._taken.pop(answer, None)
        self._waiting = [
            item
            for item in self._waiting
            if not all(item.submit.id + index in ids for index in range(item.submit.params.n))
        ]

    def stop(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compiled(self, wanted: StructuredOutputs) -> Future[Grammar]:
        key = msgspec.structs.replace(wanted, after="")
        future = self._cache.get(key)
        if future is None:
            if self._built is None:
                self._built = self._threads.submit(self._build)
            future = self._cache[key] = self._threads.submit(self._compile, self._built, key)
            while len(self._cache) > self._limits.cached:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return future

    @staticmethod
    def _compile(built: Future[Built], wanted: StructuredOutputs) -> Grammar:
        return built.result().backend.compile(wanted)

    def _too_slow(self, future: Future[Grammar]) -> RequestError:
        if not future.running():
            return OverloadedError("other grammars are being compiled; try again in a moment.")
        return RequestError(
            f"the grammar could not be compiled within {self._limits.compile_timeout:g} seconds; make it simpler.",
            param="structured_outputs",
        )
