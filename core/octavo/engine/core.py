"""The engine: one loop that schedules steps, launches them and reports what they brought.

The order of the lines in ``_advance`` is the whole of "overlap": where the executor allows steps in flight, the
next one is launched before the last one's tokens are read.

A request can be wrong; it is then refused, and the loop goes on. If the scheduler or the executor fails, nothing
about the engine's state can be trusted any more: it ends, and says why.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from octavo.contracts.api import POOLINGS, EngineStats
from octavo.contracts.executor import Executor, PendingStep
from octavo.contracts.sampling import LogitsProcessor
from octavo.engine.adapters import Adapters
from octavo.engine.constraints import Ending
from octavo.engine.failures import describe
from octavo.engine.messages import (
    Abort,
    AdapterReply,
    Beat,
    Fatal,
    FromEngine,
    LoadAdapter,
    Output,
    Outputs,
    Ready,
    Rejected,
    ResetPrefixCache,
    Stop,
    Submit,
    ToEngine,
    UnloadAdapter,
)
from octavo.engine.structured import NoStructuredOutputs
from octavo.engine.submissions import refusal_of, request_of, score_of, uses
from octavo.errors import EngineDeadError, NotFoundError, RequestError
from octavo.params import SamplingParams
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.step import Progress, Scheduled

BEAT_SECONDS: Final = 0.25
_BLOCKED_SECONDS: Final = 0.005  # between attempts while a policy holds all requests back
_log = logging.getLogger("octavo.engine")

RootHash = Callable[[str | None, str | None], bytes]
"""Digest of the adapter's contents and cache salt to the root of the prefix chain."""


class Channel(Protocol):
    """How messages reach the loop and leave it."""

    def receive(self, timeout: float) -> list[ToEngine]:
        """What has come; waits up to ``timeout`` seconds for the first message."""
        ...

    def send(self, messages: list[FromEngine]) -> None: ...


class EngineCore:
    """Scheduler and executor in one loop. Not thread-safe: ``handle`` and ``step`` belong to one thread.

    ``ready`` tells the other side what was built; ``validate`` raises :class:`RequestError` for parameters that
    a logits processor refuses. Requests that use one of the ``unsafe`` processors are not speculated on.
    ``failure`` is the error that ended the engine.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        executor: Executor,
        ready: Ready,
        root: RootHash,
        validate: Callable[[SamplingParams], None] | None = None,
        unsafe: Sequence[LogitsProcessor] = (),
        clock: Callable[[], float] = time.monotonic,
        adapters: Adapters | None = None,
        structured: NoStructuredOutputs | None = None,
    ) -> None:
        self.ready = ready
        self.failure: Exception | None = None
        self._scheduler = scheduler
        self._executor = executor
        self._root = root
        self._validate = validate
        self._unsafe = unsafe
        self._clock = clock
        self._adapters = adapters
        self._structured = structured or NoStructuredOutputs("the engine was built without")
        self._flying: deque[tuple[Scheduled, PendingStep]] = deque()
        self._outbox: list[FromEngine] = []
        self._scheduled_at: dict[int, float] = {}
        self._next_beat = 0.0
        self._blocked = False  # there is work, but the scheduler had nothing to launch
        self._checked = True  # nothing happened since the books were last checked

    @property
    def patience(self) -> float:
        """Seconds for which the loop may wait for a message."""
        if self._blocked:
            return _BLOCKED_SECONDS
        if not self.busy and (self._structured.waiting or (self._adapters is not None and self._adapters.busy)):
            return _BLOCKED_SECONDS
        return 0.0 if self._flying or self._scheduler.has_work else BEAT_SECONDS

    @property
    def busy(self) -> bool:
        """True while requests are unfinished or steps in flight."""
        return bool(self._flying) or self._scheduler.has_work

    def check(self, submit: Submit) -> None:
        """Refuse what would harm the engine, though the other side has looked at it already.

        Raises :class:`RequestError`.
        """
        vocab_size = self.ready.context.model.vocab_size
        submit.params.check_vocabulary(vocab_size)
        for name, ids in (
            ("prompt", submit.prompt_ids),
            ("stop_token_ids", submit.stop_ids),
            *(("bad_words", ids) for ids in submit.bad_word_ids),
        ):
            if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
                raise RequestError(
                    f"{name} contains a token id that is not between 0 and {vocab_size - 1}.", param=name
                )
        if submit.priority and not self.ready.uses_priority:
            raise RequestError(
                "priority means nothing to this server's scheduling policy; it would with scheduler.use: priority.",
                param="priority",
            )
        self._structured.check(submit.params)
        if submit.pooling not in ("", *POOLINGS) or (submit.pooling and submit.params.n != 1):
            raise RequestError(f"pooling must be one of {', '.join(POOLINGS)}, for one answer.", param="pooling")
        if self._validate is not None:
            self._validate(submit.params)

    def prepare(self, submit: Submit) -> None:
        """``check``, and wait for the request's grammar if it has one. Raises :class:`RequestError`."""
        self.check(submit)
        self._structured.prepare(submit)

    def handle(self, message: ToEngine) -> None:
        """Take one message. Never raises; a request that is wrong is answered with :class:`Rejected`."""
        if self.failure is not None:
            return
        try:
            match message:
                case Submit():
                    self._submit(message)
                case Abort():
                    self._structured.forget(message.ids)
                    for request_id in message.ids:
                        self._scheduler.abort(request_id)
                        self._scheduled_at.pop(request_id, None)
                case ResetPrefixCache():
                    self._scheduler.reset_prefix_cache()
                case LoadAdapter() | UnloadAdapter():
                    self._change_adapters(message)
                case Stop():
                    pass  # the loop's business
        except Exception as error:
            self._fail(error)

    def step(self) -> list[FromEngine]:
        """One turn of the loop: what there is to send. Ends with :class:`Fatal` when the engine can't go on."""
        if self.failure is None:
            try:
                self._advance()
            except Exception as error:
                self._fail(error)
            except BaseException:  # Ctrl-C in the middle of a step: the books are half written
                self.failure = EngineDeadError("a step of the engine was interrupted.")
                raise
        messages, self._outbox = self._outbox, []
        return messages

    def stats(self) -> EngineStats:
        """Figures as of now."""
        return self._scheduler.stats()

    def stop(self) -> None:
        """Free what the executor holds."""
        if self._adapters is not None:
            self._adapters.stop()
        self._structured.stop()
        try:
            self._executor.stop()
        except Exception:
            _log.exception("the executor failed to stop")

    def _fail(self, error: Exception) -> None:
        _log.error("the engine has failed", exc_info=error)
        self.failure = error
        self._outbox.append(Fatal(describe(error)))

    def _advance(self) -> None:
        scheduled = self._scheduler.schedule()
        if scheduled is not None:
            pending = self._executor.launch(scheduled.plan)
            self._flying.append((scheduled, pending))
            self._note_starts(scheduled)
            if scheduled.plan.masked:
                self._sample(scheduled, pending)
        depth = self._executor.depth if self._scheduler.overlaps else 0
        if self._flying and (scheduled is None or len(self._flying) > depth):
            self._land()
        while len(self._flying) > depth:  # more than one only where overlap ends
            self._land()
        if self._structured.waiting:
            for submit, refusal in self._structured.poll():
                self._submit(submit) if refusal is None else self._reject(submit, refusal)
        if self._adapters is not None and self._adapters.busy:
            self._outbox += self._adapters.poll()
            for key, reason in self._adapters.lost():
                self._report(self._scheduler.fail_adapter(key, reason))
        self._blocked = scheduled is None and not self._flying and self._scheduler.has_work
        self._keep_time(idle=scheduled is None and not self.busy)

    def _sample(self, scheduled: Scheduled, pending: PendingStep) -> None:
        """Sample a step whose masks follow from the steps before it: these are read first, while it is computed."""
        while len(self._flying) > 1:
            self._land()
        masks, endings = self._structured.masks(scheduled)
        pending.sample(masks)
        self._report(self._end(endings))

    def _land(self) -> None:
        """Read the oldest step."""
        done, pending = self._flying.popleft()
        progress = self._scheduler.update(done, pending.result())
        if done.plan.masked:
            progress += self._end(self._structured.follow(progress))
        self._report(progress)

    def _end(self, endings: list[Ending]) -> list[Progress]:
        for ending in endings:
            self._scheduler.abort(ending.request.id, ending.reason)
        return [Progress(request, [], finish_reason=reason, error=error) for request, reason, error in endings]

    def _note_starts(self, scheduled: Scheduled) -> None:
        if scheduled.plan.starts:
            rows = {start.row for start in scheduled.plan.starts}
            now = self._clock()
            for request in scheduled.requests:
                if request.row in rows:
                    self._scheduled_at.setdefault(request.id, now)

    def _report(self, progress: list[Progress]) -> None:
        if progress:
            self._outbox.append(Outputs([self._output(item) for item in progress]))

    def _output(self, progress: Progress) -> Output:
        request = progress.request
        output = Output(request.id, progress.token_ids, drafted=progress.drafted, accepted=progress.accepted)
        if progress.logprobs is not None:
            output.scores = [score_of(entry) for entry in progress.logprobs]
        if progress.prompt_logprobs is not None:
            output.prompt_scores = [score_of(entry) for entry in progress.prompt_logprobs]
        if progress.first:
            output.cached_tokens = request.cached_tokens
            output.scheduled_at = self._scheduled_at.pop(request.id, None)
        if progress.pooled is not None:
            output.pooled = progress.pooled.astype("<f4").tobytes()
        if progress.finish_reason is not None:
            output.finish_reason, output.stop_reason = progress.finish_reason, request.stop_reason
            output.error = progress.error
            self._scheduled_at.pop(request.id, None)
        return output

    def _keep_time(self, idle: bool) -> None:
        """Beat at most every quarter of a second; check the books when there was time to rest since the work."""
        self._checked = self._checked and idle
        now = self._clock()
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_SECONDS
        if idle and not self._checked:
            self._scheduler.check()
            self._checked = True
        self._outbox.append(Beat(self.stats()))

    def _submit(self, submit: Submit) -> None:
        added: list[int] = []
        try:
            self.check(submit)
            hold = self._structured.admit(submit, self.ready.max_queue)
            if hold is None:
                return
            key, digest = self._adapter(submit.adapter)
            root = self._root(digest, submit.cache_salt)
            speculates = not any(uses(processor, submit) for processor in self._unsafe)
            for index in range(submit.params.n):
                request = request_of(submit, index, root, key, speculates)
                request.constraint = hold()
                self._scheduler.add(request)
                added.append(request.id)
        except Exception as error:
            for request_id in added:
                self._scheduler.abort(request_id)
            self._reject(submit, error)

    def _reject(self, submit: Submit, error: Exception) -> None:
        self._outbox.append(Rejected(submit.id, describe(refusal_of(error))))

    def _adapter(self, name: str | None) -> tuple[int, str | None]:
        """Key and digest of the adapter that a request names."""
        if name is None:
            return 0, None
        if self._adapters is None:
            raise NotFoundError(f"there is no adapter {name!r} in this engine: it serves none.", param="model")
        key, adapter = self._adapters.find(name)
        return key, adapter.digest

    def _change_adapters(self, message: LoadAdapter | UnloadAdapter) -> None:
        if self._adapters is None:
            error = RequestError("this engine serves no adapters: its configuration has no lora section.")
            self._outbox.append(AdapterReply(message.ticket, message.name, None, describe(error)))
        elif isinstance(message, LoadAdapter):
            self._adapters.load(message)
        else:
            self._adapters.unload(message)


def serve(core: EngineCore, channel: Channel) -> None:
    """Run until told to stop, or until the engine fails."""
    try:
        while core.failure is None:
            for message in channel.receive(core.patience):
                if isinstance(message, Stop):
                    return
                core.handle(message)
            if messages := core.step():
                channel.send(messages)
    finally:
        core.stop()
