"""Questions to the engine about adapters that wait for their answers, on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from octavo.engine.failures import restore
from octavo.engine.links import Link
from octavo.engine.messages import AdapterReply, LoadAdapter, UnloadAdapter


class AdapterCalls:
    """``loaded_at``, by name: when an adapter came into use, in seconds since 1970."""

    def __init__(self, link: Link) -> None:
        self.loaded_at: dict[str, int] = {}
        self._link = link
        self._asked: dict[int, asyncio.Future[AdapterReply]] = {}
        self._loading: dict[str, asyncio.Task[object]] = {}

    async def ask(self, message: LoadAdapter | UnloadAdapter) -> AdapterReply:
        """Send a message about an adapter and wait for the answer to it."""
        future: asyncio.Future[AdapterReply] = asyncio.get_running_loop().create_future()
        self._asked[message.ticket] = future
        try:
            self._link.send(message)
            reply = await future
        finally:
            self._asked.pop(message.ticket, None)
        if reply.failure is not None:
            raise restore(reply.failure)
        return reply

    async def once(self, name: str, load: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Load an adapter, once however many wait for it, and also if they go. Raises what ``load`` raises."""
        if name not in self._loading:
            task = self._loading[name] = asyncio.create_task(load())
            task.add_done_callback(self._loaded)
        await asyncio.shield(self._loading[name])

    def _loaded(self, task: asyncio.Task[object]) -> None:
        self._loading = {name: other for name, other in self._loading.items() if other is not task}
        if not task.cancelled():
            task.exception()  # whoever waited has seen it, unless they have gone

    def answered(self, reply: AdapterReply) -> None:
        """Also when nobody waits for it any more: the engine has loaded it all the same."""
        if reply.served is not None:
            self.loaded_at[reply.name] = int(time.time())
        future = self._asked.get(reply.ticket)
        if future is not None and not future.done():
            future.set_result(reply)

    def fail(self, error: Exception) -> None:
        """No answer will come any more."""
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)
