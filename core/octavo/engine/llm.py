"""The engine as a script sees it: prompts in, finished answers out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tqdm import tqdm

from octavo.assemble import resolve
from octavo.contracts.api import Delta, Embedding, EngineStats
from octavo.contracts.lora import ServedAdapter
from octavo.engine import embedding
from octavo.engine.answers import Answers
from octavo.engine.boot import build_core
from octavo.engine.failures import restore
from octavo.engine.frontend import ConfigArgument, Frontend, ModelArgument, launch
from octavo.engine.interrupts import polite_interrupts
from octavo.engine.llm_arguments import (
    AdapterNames,
    Messages,
    Params,
    Prompt,
    adapters_for,
    conversations_of,
    params_for,
    priorities_for,
    prompts_of,
)
from octavo.engine.messages import (
    Abort,
    AdapterReply,
    Fatal,
    FromEngine,
    LoadAdapter,
    Outputs,
    Rejected,
    ResetPrefixCache,
    Submit,
    UnloadAdapter,
)
from octavo.engine.observers import Observers
from octavo.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.errors import EngineDeadError
from octavo.params import SamplingParams

if TYPE_CHECKING:
    from octavo.explain import Explanation

_POLL_SECONDS: Final = 0.001


@dataclass(slots=True)
class _Job:
    submit: Submit
    answers: Answers
    output: RequestOutput


class LLM:
    """An engine in this process, without sockets or threads: the same loop that serves.

    ``model`` is a checkpoint path (or the whole ``model`` section), ``config`` a YAML file or mapping; further
    keywords are sections of it, and ``plugins`` objects with hooks. ::

        with LLM("./model", cache={"blocks": 512}) as llm:
            print(llm.generate("Once upon a time")[0].outputs[0].text)

    Raises :class:`ConfigError`, :class:`PluginError` and :class:`CheckpointError`. Calls from several threads
    take turns.
    """

    def __init__(
        self,
        model: ModelArgument = None,
        *,
        config: ConfigArgument = None,
        plugins: Sequence[object] = (),
        **sections: Any,
    ) -> None:
        self.config, self.host = launch(model, config, plugins, sections)
        self._frontend = Frontend(self.config, self.host)
        self._resolved = resolve(self.config, self.host)
        self._core = build_core(self._resolved)
        self._frontend.open(self._core.ready)
        self._observers = Observers(self.host)
        self._turn = threading.Lock()
        self._closed = False
        self.host.engine_started(self._core.ready.context)

    @property
    def max_length(self) -> int:
        """Longest prompt + answer, in tokens."""
        return self._frontend.max_length

    @property
    def default_sampling(self) -> dict[str, Any]:
        """What the checkpoint recommends; used where no parameters are given."""
        return dict(self._frontend.default_sampling)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        use_tqdm: bool = False,
        adapter: AdapterNames = None,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Answer prompts, each text or token ids; one output a prompt, in order.

        ``params`` are for all prompts, or one for each; without, the checkpoint's defaults and 16 tokens.
        ``adapter`` names a LoRA adapter, likewise; ``None`` is the base model. ``priority``, likewise: lower runs
        first, where the scheduling policy looks at it.
        Raises :class:`RequestError` for any of the prompts before work on the first begins.
        """
        chosen = params if params is not None else SamplingParams(**self.default_sampling)
        given = [(prompt, True) for prompt in prompts_of(prompts)]
        jobs = self._jobs(given, chosen, adapter, priority)
        return self._answer(jobs, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: Params = None,
        *,
        use_tqdm: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_options: Mapping[str, Any] | None = None,
        adapter: AdapterNames = None,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Answer a conversation, or several: lists of ``{"role": …, "content": …}``.

        Without ``params``, the checkpoint's defaults, and an answer as long as the model makes it.
        """
        chosen = params if params is not None else SamplingParams(max_tokens=None, **self.default_sampling)
        prompts = [
            self._frontend.render_chat(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                options=template_options,
            )
            for conversation in conversations_of(messages)
        ]
        return self._answer(
            self._jobs([(prompt, False) for prompt in prompts], chosen, adapter, priority), use_tqdm
        )

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        use_tqdm: bool = False,
        adapter: AdapterNames = None,
    ) -> list[Embedding]:
        """Prompts as vectors, in order: the hidden states of the model's last layer, pooled.

        ``pooling`` is ``last`` or ``mean``; without, what the checkpoint says, else ``last``. The first
        ``dimensions`` of them are kept, and scaled to length 1 if ``normalize``. Raises :class:`RequestError`.
        """
        embedding.check_dimensions(dimensions, self._frontend.profile.hidden_size)
        chosen = embedding.check_pooling(pooling, self._frontend.pooling)
        given = [(prompt, True) for prompt in prompts_of(prompts)]
        jobs = self._jobs(given, embedding.NOTHING_SAMPLED, adapter, 0, chosen)
        self._answer(jobs, use_tqdm)
        return [embedding.finish(job.answers, dimensions, normalize) for job in jobs]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._frontend.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return self._frontend.decode(token_ids, skip_special_tokens)

    def stats(self) -> EngineStats:
        """Figures as of now."""
        return self._core.stats()

    def explain(self) -> Explanation:
        """Why this engine is what it is; ``print(llm.explain().text())``."""
        from octavo.explain import explain

        return explain(self._resolved)

    def reset_prefix_cache(self) -> None:
        """Forget cached blocks."""
        self._core.handle(ResetPrefixCache())

    def adapters(self) -> list[ServedAdapter]:
        """The LoRA adapters that may be named."""
        return list(self._frontend.adapters.values())

    def load_adapter(self, name: str, path: str | Path, *, pinned: bool = False) -> ServedAdapter:
        """Serve the PEFT adapter in the folder ``path`` as ``name``, in place of an earlier one of that name.

        ``pinned`` keeps it on the device. Raises :class:`RequestError` naming the tensor or setting that is wrong,
        and :class:`NotFoundError` when nothing is there.
        """
        reply = self._ask(self._frontend.load_adapter(name, path, pinned))
        assert reply.served is not None
        return reply.served

    def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer. Raises :class:`NotFoundError`."""
        self._ask(self._frontend.unload_adapter(name))

    def close(self) -> None:
        """Free the model and its cache. The engine is of no use afterwards."""
        if not self._closed:
            self._closed = True
            self.host.engine_stopping()
            self._core.stop()
            self._observers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _jobs(
        self,
        prompts: Sequence[tuple[Prompt, bool]],
        params: SamplingParams | Sequence[SamplingParams],
        adapter: AdapterNames,
        priority: int | Sequence[int],
        pooling: str = "",
    ) -> list[_Job]:
        """Requests, admitted but not sent yet; each prompt with whether special tokens are added."""
        self._check_alive()
        count = len(prompts)
        names = adapters_for(adapter, count)
        self._resolve(names)
        each = zip(
            prompts,
            params_for(params, count),
            names,
            priorities_for(priority, count),
            strict=True,
        )
        with self._turn:
            return [self._admit(*prompt, wanted, name, rank, pooling) for prompt, wanted, name, rank in each]

    def _resolve(self, names: Sequence[str | None]) -> None:
        """Load the adapters that are known to the resolver alone."""
        for name in dict.fromkeys(names):
            path = self._frontend.resolve_adapter(name)
            if name is not None and path is not None:
                self.load_adapter(name, path)

    def _answer(self, jobs: Sequence[_Job], bar: bool) -> list[RequestOutput]:
        shown = tqdm(total=len(jobs), unit="prompt", disable=not bar)
        with self._turn, shown as progress, polite_interrupts() as check:
            try:
                self._run(jobs, progress.update, check)
            finally:
                self._core.handle(Abort([number for job in jobs for number in job.answers.unfinished]))
        return [job.output for job in jobs]

    def _check_alive(self) -> None:
        if self._closed:
            raise EngineDeadError("this engine has been closed.")
        if self._core.failure is not None:
            raise EngineDeadError(f"the engine has ended: {self._core.failure}") from self._core.failure

    def _ask(self, message: LoadAdapter | UnloadAdapter) -> AdapterReply:
        """Send a message about an adapter and wait for the answer to it."""
        self._check_alive()
        with self._turn:
            self._core.handle(message)
            while True:
                for answer in self._core.step():
                    if isinstance(answer, Fatal):
                        raise EngineDeadError(f"the engine has ended: {answer.failure.message}")
                    if isinstance(answer, AdapterReply) and answer.ticket == message.ticket:
                        self._frontend.note_adapter(answer)
                        if answer.failure is not None:
                            raise restore(answer.failure)
                        return answer
                time.sleep(_POLL_SECONDS)

    def _admit(
        self,
        prompt: Prompt,
        add_special_tokens: bool,
        params: SamplingParams,
        adapter: str | None,
        priority: int,
        pooling: str,
    ) -> _Job:
        prompt_ids, bad_word_ids = self._frontend.admission.prepare(prompt, params, add_special_tokens)
        submit, answers = self._frontend.submit(
            prompt_ids, bad_word_ids, params, adapter=adapter, priority=priority, pooling=pooling
        )
        self._core.prepare(submit)
        outputs = [CompletionOutput(index, "", []) for index in range(params.n)]
        text = prompt if isinstance(prompt, str) else None
        return _Job(submit, answers, RequestOutput(answers.label, text, prompt_ids, outputs))

    def _run(self, jobs: Sequence[_Job], finished: Callable[[], object], check: Callable[[], None]) -> None:
        waiting, live = deque(jobs), dict[int, _Job]()
        while waiting or live:
            check()
            while waiting and self._has_room(len(live), waiting[0].submit.params.n):
                job = waiting.popleft()
                live.update(dict.fromkeys(job.answers.ids, job))
                self._core.handle(job.submit)
            for message in self._core.step():
                self._take(message, live, finished)
            if live and (patience := self._core.patience):  # all wait: for an adapter, or a policy
                time.sleep(min(patience, _POLL_SECONDS))

    def _has_room(self, live: int, more: int) -> bool:
        return not live or live + more <= self._core.ready.max_queue

    def _take(self, message: FromEngine, live: dict[int, _Job], finished: Callable[[], object]) -> None:
        match message:
            case Outputs():
                now = time.monotonic()
                for output in message.outputs:
                    job = live.get(output.id)
                    if job is None:
                        continue
                    deltas, abort = job.answers.push(output, now)
                    for delta in deltas:
                        _append(job.output, delta)
                    if abort is not None:
                        self._core.handle(Abort([abort]))
                    if output.id not in job.answers.unfinished:
                        del live[output.id]
                        self._finish(job, now, finished)
            case Rejected():
                raise restore(message.failure)
            case Fatal():
                raise EngineDeadError(f"the engine has ended: {message.failure.message}") from self._core.failure

    def _finish(self, job: _Job, now: float, finished: Callable[[], object]) -> None:
        if job.answers.unfinished:
            return
        summary = job.answers.summary(now)
        job.output.finished = True
        job.output.metrics = RequestMetrics(
            summary.queue_time,
            summary.time_to_first_token,
            summary.duration,
            summary.drafted_tokens,
            summary.accepted_tokens,
        )
        if self._observers.wanted:
            self._observers.tell(summary)
        finished()


def _append(output: RequestOutput, delta: Delta) -> None:
    if delta.prompt is not None:
        output.prompt_logprobs = delta.prompt.logprobs
        output.num_cached_tokens = delta.prompt.cached_tokens
    answer = output.outputs[delta.index]
    answer.text += delta.text
    answer.token_ids += delta.token_ids
    if delta.logprobs is not None:
        answer.logprobs = (answer.logprobs or []) + delta.logprobs
    answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
