"""One prompt's answers, measured as they pass."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from time import monotonic
from typing import TYPE_CHECKING

from octavo.contracts.api import Delta, PromptInfo
from octavo.errors import RequestError
from octavo.params import SamplingParams
from octavo_api.streams import close

if TYPE_CHECKING:
    from octavo_api.metrics import Metrics


class Watch:
    """Belongs to one prompt. Times are those of the API process: arrival is when the request came."""

    def __init__(self, metrics: Metrics, model: str, received: float, params: SamplingParams) -> None:
        self._metrics = metrics
        self._model = model
        self._received = received
        self._params = params
        self._between = metrics.between.labels(model)
        self._scheduled: float | None = None
        self._firsts: dict[int, float] = {}
        self._latest: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    async def follow(self, stream: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
        """Pass ``stream`` on. What ends before its last delta counts as aborted, except refusals."""
        unfinished = self._params.n
        try:
            async for delta in stream:
                self._see(delta)
                unfinished -= delta.finish_reason is not None
                yield delta
        except RequestError:
            unfinished = 0
            raise
        finally:
            await close(stream)
            for _ in range(unfinished):
                self._metrics.success.labels(self._model, "abort").inc()

    def _see(self, delta: Delta) -> None:
        now, index = monotonic(), delta.index
        if delta.prompt is not None:
            self._see_prompt(delta.prompt, now)
        if delta.token_ids:
            before, count = self._latest.get(index), len(delta.token_ids)
            if before is None:
                self._firsts[index] = now
            else:
                self._between.observe((now - before) / count)
            self._latest[index] = now
            self._counts[index] = self._counts.get(index, 0) + count
        if delta.finish_reason is not None:
            self._see_end(index, delta.finish_reason, now)

    def _see_prompt(self, prompt: PromptInfo, now: float) -> None:
        metrics, model = self._metrics, self._model
        metrics.prompt.labels(model).observe(len(prompt.token_ids))
        metrics.cached.labels(model).inc(prompt.cached_tokens)
        metrics.asked.labels(model).observe(self._params.n)
        if self._params.max_tokens is not None:
            metrics.longest.labels(model).observe(self._params.max_tokens)
        metrics.first.labels(model).observe(now - self._received)
        if prompt.queue_time is not None:
            self._scheduled = self._received + prompt.queue_time
            metrics.queue.labels(model).observe(prompt.queue_time)
            metrics.prefill.labels(model).observe(max(0.0, now - self._scheduled))

    def _see_end(self, index: int, reason: str, now: float) -> None:
        metrics, model, count = self._metrics, self._model, self._counts.get(index, 0)
        metrics.success.labels(model, reason).inc()
        metrics.whole.labels(model).observe(now - self._received)
        metrics.generated.labels(model).observe(count)
        decode = now - self._firsts.get(index, now)
        metrics.decode.labels(model).observe(decode)
        if self._scheduled is not None:
            metrics.inference.labels(model).observe(max(0.0, now - self._scheduled))
        if count > 1:
            metrics.each.labels(model).observe(decode / (count - 1))
