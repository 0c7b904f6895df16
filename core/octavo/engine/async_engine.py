"""The engine as an asyncio application sees it: requests in, streams of deltas out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from octavo.config.launch import LaunchConfig
from octavo.contracts.api import Arrival, Delta, Embedding, EngineStats, Health, ServedModel
from octavo.contracts.lora import ServedAdapter
from octavo.engine import embedding
from octavo.engine.adapter_calls import AdapterCalls
from octavo.engine.frontend import ConfigArgument, Frontend, ModelArgument, launch
from octavo.engine.links import Link, inline_link
from octavo.engine.messages import Abort, AdapterReply, Ready, ResetPrefixCache
from octavo.engine.observers import Observers
from octavo.engine.process_link import ProcessLink
from octavo.engine.receiver import News, Receiver
from octavo.engine.stream import Stream
from octavo.errors import ConfigError, EngineDeadError, NotReadyError, OverloadedError
from octavo.params import SamplingParams
from octavo.plugins.host import PluginHost
from octavo.records import ToolParserRecord

STALL_SECONDS: Final = 300.0
"""An engine that has not beaten for so long is no longer called alive. A long prompt on a CPU takes its time."""

_TEXT_THREADS: Final = 2
T = TypeVar("T")


class AsyncEngine:
    """Implements :class:`octavo.contracts.api.EngineClient`.

    ``model`` is a checkpoint path (or the whole ``model`` section), ``config`` a YAML file or mapping; further
    keywords are sections of it, and ``plugins`` objects with hooks. The engine runs in a process of its own, or
    with ``inline=True`` in a thread of this one, which objects given in Python need. ::

        async with AsyncEngine("./model") as engine:
            async for delta in engine.generate("Once", SamplingParams(max_tokens=32)):
                print(delta.text, end="")

    Raises :class:`ConfigError`, :class:`PluginError` and :class:`CheckpointError`, from here or from ``start``.
    """

    def __init__(
        self,
        model: ModelArgument = None,
        *,
        config: ConfigArgument = None,
        plugins: Sequence[object] = (),
        inline: bool = False,
        **sections: Any,
    ) -> None:
        self._begin(*launch(model, config, plugins, sections), inline)

    @classmethod
    def from_launch(cls, config: LaunchConfig, host: PluginHost, *, inline: bool = False) -> Self:
        """From what :func:`octavo.config.compose.load_launch` answered."""
        engine = cls.__new__(cls)
        engine._begin(config, host, inline)
        return engine

    def _begin(self, config: LaunchConfig, host: PluginHost, inline: bool) -> None:
        self.config = config
        self.host = host
        self.link: Link = inline_link(config, host) if inline else ProcessLink(host.lock(), config.to_mapping())
        self._frontend: Frontend | None = None
        self._streams: dict[int, Stream] = {}
        self._adapters = AdapterCalls(self.link)
        self._receiver: Receiver | None = None
        self._observers = Observers(host)
        self._pool = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="octavo-text")
        self._ready: asyncio.Future[Ready] | None = None
        self._capacity = 0
        self._death: str | None = None
        self._unready = ""
        self._stopping = False
        self._stats = EngineStats()
        self._beat_at = 0.0
        self._created = 0

    async def start(self) -> None:
        """Start the engine and wait until it is ready. What is wrong with it is raised here."""
        if self._ready is not None:
            raise ConfigError("this engine was started before; make a new one.")
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        try:
            # The engine loads its weights while this process reads the tokenizer.
            await self._off_loop(self.link.start)
            self._receiver = Receiver(self.link, self._streams, loop, self._take)
            self._receiver.start()
            self._frontend = await self._off_loop(Frontend, self.config, self.host)
            ready = await self._ready
        except BaseException:
            await self.stop()
            raise
        self._frontend.open(ready)
        self._capacity = ready.max_queue + ready.context.max_sequences
        self._created = int(time.time())
        await self._off_loop(self.host.engine_started, ready.context)

    async def stop(self) -> None:
        """End the engine; open streams end with :class:`EngineDeadError`. Takes seconds at most."""
        if self._stopping:
            return
        self._stopping = True
        if self._frontend is not None and self._created:
            await self._off_loop(self.host.engine_stopping)
        running = self._death is None and self._created > 0
        self._die(EngineDeadError("the engine has been stopped."))
        await asyncio.shield(self._off_loop(self._close, running))
        self._pool.shutdown(wait=False)

    def _close(self, running: bool) -> None:
        if self._receiver is not None:
            self._receiver.stop()
        self.link.close(patient=running)
        self._observers.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival: Arrival | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[Delta]:
        """See :meth:`octavo.contracts.api.EngineClient.generate`."""
        stream = await self._open(
            prompt,
            params,
            add_special_tokens,
            request_id=request_id,
            adapter=adapter,
            priority=priority,
            cache_salt=cache_salt,
            arrival=arrival,
        )
        try:
            while (delta := await stream.next()) is not None:
                yield delta
        finally:
            self._forget(stream)

    async def embed(
        self,
        prompt: str | Sequence[int],
        *,
        pooling: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        request_id: str | None = None,
        adapter: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival: Arrival | None = None,
        add_special_tokens: bool = True,
    ) -> Embedding:
        """See :meth:`octavo.contracts.api.EngineClient.embed`."""
        frontend = self._serving()
        embedding.check_dimensions(dimensions, frontend.profile.hidden_size)
        stream = await self._open(
            prompt,
            embedding.NOTHING_SAMPLED,
            add_special_tokens,
            request_id=request_id,
            adapter=adapter,
            priority=priority,
            cache_salt=cache_salt,
            arrival=arrival,
            pooling=embedding.check_pooling(pooling, frontend.pooling),
        )
        try:
            while await stream.next() is not None:
                pass
        finally:
            self._forget(stream)
        return embedding.finish(stream.answers, dimensions, normalize)

    async def _open(
        self, prompt: str | Sequence[int], params: SamplingParams, add_special_tokens: bool, **rest: Any
    ) -> Stream:
        """Admit a request and send it off. Whoever gets the stream must ``_forget`` it."""
        frontend = self._serving()
        prompt_ids, bad_word_ids = await self._off_loop(
            frontend.admission.prepare, prompt, params, add_special_tokens
        )
        await self._resolve(rest.get("adapter"))
        self._serving()
        self._check_room(params.n)
        submit, answers = frontend.submit(prompt_ids, bad_word_ids, params, **rest)
        stream = Stream(answers)
        self._streams.update(dict.fromkeys(answers.ids, stream))
        try:
            self.link.send(submit)
        except BaseException:
            self._forget(stream)
            raise
        return stream

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See :class:`octavo.contracts.api.EngineClient`."""
        return await self._off_loop(self._serving().encode, text, add_special_tokens)

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """See :class:`octavo.contracts.api.EngineClient`."""
        return await self._off_loop(self._serving().decode, token_ids, skip_special_tokens)

    async def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """See :class:`octavo.contracts.api.EngineClient`."""
        return await self._off_loop(self._serving().token_texts, token_ids)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """See :class:`octavo.contracts.api.EngineClient`."""

        def render() -> list[int]:
            return frontend.render_chat(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                options=template_options,
            )

        frontend = self._serving()
        return await self._off_loop(render)

    async def reset_prefix_cache(self) -> None:
        """Forget cached blocks that no request uses; requests sent after this find none of them."""
        self._serving()
        self.link.send(ResetPrefixCache())

    async def load_adapter(self, name: str, path: str | Path, *, pinned: bool = False) -> ServedAdapter:
        """Serve the PEFT adapter in the folder ``path`` as ``name``, in place of an earlier one of that name.

        Requests that began with the earlier one end with it. ``pinned`` keeps the adapter on the device. Raises
        :class:`RequestError` naming the tensor or setting that is wrong, and :class:`NotFoundError` when nothing
        is there.
        """
        reply = await self._adapters.ask(self._serving().load_adapter(name, path, pinned))
        assert reply.served is not None
        return reply.served

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter, and wait until those that there are have ended.

        Raises :class:`NotFoundError`.
        """
        await self._adapters.ask(self._serving().unload_adapter(name))

    def drain(self, reason: str = "draining") -> None:
        """Be unready, so that surfaces refuse new requests; those under way go on."""
        self._unready = reason

    def resume(self) -> None:
        """Undo ``drain``."""
        self._unready = ""

    def resolves(self, name: str) -> bool:
        """See :class:`octavo.contracts.api.EngineClient`."""
        return self._serving().resolve_adapter(name) is not None

    @property
    def model_name(self) -> str:
        """The name shown to clients."""
        return self._loaded.profile.name

    @property
    def max_length(self) -> int:
        """Longest prompt + answer, in tokens."""
        return self._loaded.max_length

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._loaded.profile.vocab_size

    @property
    def has_chat_template(self) -> bool:
        """Whether ``render_chat`` can work."""
        return self._loaded.tokenizer.has_chat_template

    @property
    def chat_template(self) -> str:
        """The template's source."""
        return self._loaded.tokenizer.chat_template(tools=True) or ""

    @property
    def tool_parsers(self) -> Mapping[str, ToolParserRecord]:
        """Those of the loaded plugins."""
        return {item.record.name: item.record for item in self.host.tool_parsers()}

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        """From the checkpoint's generation_config.json."""
        return self._loaded.default_sampling

    def models(self) -> list[ServedModel]:
        """The base model, and the adapters over it."""
        profile, length = self._loaded.profile, self.max_length
        base = ServedModel(profile.name, profile.path, None, length, self._created)
        adapters = [
            ServedModel(
                one.name, one.path, profile.name, length, self._adapters.loaded_at.get(one.name, self._created)
            )
            for one in self._loaded.adapters.values()
        ]
        return [base, *adapters]

    def stats(self) -> EngineStats:
        """As of the last beat, a quarter of a second ago at most."""
        return self._stats

    def health(self) -> Health:
        """Whether the engine's loop beats, and why not."""
        age = time.monotonic() - self._beat_at if self._beat_at else 0.0
        if self._death is not None:
            return Health(alive=False, ready=False, heartbeat_age=age, reason=self._death)
        if age > STALL_SECONDS:
            return Health(alive=False, ready=False, heartbeat_age=age, reason=f"no heartbeat for {age:.0f} seconds")
        reason = self._unready if self._created else "starting"
        return Health(alive=True, ready=not reason, heartbeat_age=age, reason=reason)

    @property
    def _loaded(self) -> Frontend:
        if self._ready is None:
            raise ConfigError("the engine has not been started: await start() first.")
        if self._frontend is None:
            raise NotReadyError("the engine is still loading its model.", retry_after=2)
        return self._frontend

    def _serving(self) -> Frontend:
        if self._death is not None:
            raise EngineDeadError(self._death)
        frontend = self._loaded
        if not self._created:
            raise NotReadyError("the engine is still loading its model.", retry_after=2)
        return frontend

    def _check_room(self, count: int) -> None:
        """The engine has its own limit; this one keeps what it has not seen yet from piling up."""
        if len(self._streams) + count > self._capacity:
            raise OverloadedError(f"{len(self._streams)} answers are being worked on, the most that is allowed.")

    async def _resolve(self, name: str | None) -> None:
        """Load the adapter if it is known to the resolver alone."""
        path = self._serving().resolve_adapter(name)
        if name is not None and path is not None:
            await self._adapters.once(name, lambda: self.load_adapter(name, path))

    def _note_adapter(self, reply: AdapterReply) -> None:
        self._loaded.note_adapter(reply)
        self._adapters.answered(reply)

    def _forget(self, stream: Stream) -> None:
        """The consumer is done with it: what still runs is aborted, observers are told."""
        for answer_id in stream.answers.ids:
            self._streams.pop(answer_id, None)
        if stream.answers.unfinished and self._death is None:
            self.link.send(Abort(sorted(stream.answers.unfinished)))
        if self._observers.wanted:
            self._observers.tell(stream.answers.summary(time.monotonic()))

    def _take(self, news: News) -> None:
        """On the event loop: what one look into the engine's messages has brought, in one go."""
        for stream, deltas, done in news.deltas:
            stream.put(deltas, done)
        for stream, error in news.errors:
            stream.fail(error)
        if news.aborts and self._death is None:
            self.link.send(Abort(news.aborts))
        for reply in news.adapters:
            self._note_adapter(reply)
        if news.stats is not None:
            self._stats, self._beat_at = news.stats, time.monotonic()
        if news.ready is not None and self._ready is not None and not self._ready.done():
            self._beat_at = time.monotonic()
            self._ready.set_result(news.ready)
        if news.death is not None:
            self._die(news.death)

    def _die(self, error: Exception) -> None:
        """Nothing will come any more."""
        if self._death is not None:
            return
        self._death = str(error)
        for stream in {id(stream): stream for stream in self._streams.values()}.values():
            stream.fail(EngineDeadError(self._death))
        self._adapters.fail(EngineDeadError(self._death))
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # the caller of ``start`` may have gone

    async def _off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
