"""Prometheus figures, named as vLLM names them with the prefix ``octavo:``, in a registry of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from octavo.contracts.api import Embedding, EngineClient
from octavo.params import SamplingParams
from octavo_api.engine_figures import PREFIX, EngineFigures
from octavo_api.watch import Watch


def _buckets(bounds: str) -> tuple[float, ...]:
    return tuple(map(float, bounds.split()))


_WHOLE: Final = _buckets("0.1 0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960")
_FIRST: Final = _buckets("0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160")
_BETWEEN: Final = _buckets("0.002 0.005 0.01 0.015 0.02 0.025 0.03 0.04 0.05 0.075 0.1 0.15 0.2 0.3 0.5 1 2.5 5")
_TOKENS: Final = tuple(float(1 << exponent) for exponent in range(18))
_ANSWERS: Final = _buckets("1 2 4 8 16 32 64 128")


class Metrics:
    """What this surface measures of the requests that come through it."""

    def __init__(self, client: EngineClient) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineFigures(client))
        self._client = client
        self.success = Counter(
            PREFIX + "request_success",
            "Answers finished, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._http = Counter(
            PREFIX + "http_requests",
            "HTTP requests, by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self._http_time = Histogram(
            PREFIX + "http_request_duration_seconds",
            "From a request's headers to the beginning of its answer, by route.",
            ["route"],
            registry=self.registry,
            buckets=_FIRST,
        )
        self.first = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST)
        self.between = self._histogram("inter_token_latency_seconds", "Between tokens of an answer.", _BETWEEN)
        self.whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _WHOLE)
        self.prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.generated = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.asked = self._histogram("request_params_n", "Answers asked for with one prompt.", _ANSWERS)
        self.longest = self._histogram("request_params_max_tokens", "Longest answer asked for, in tokens.", _TOKENS)
        self.queue = self._histogram("request_queue_time_seconds", "From arrival to being scheduled.", _FIRST)
        self.prefill = self._histogram("request_prefill_time_seconds", "From there to the first token.", _FIRST)
        self.decode = self._histogram("request_decode_time_seconds", "From the first token to the last.", _WHOLE)
        self.inference = self._histogram("request_inference_time_seconds", "Prefill and decode together.", _WHOLE)
        self.each = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between an answer's tokens.", _BETWEEN
        )
        self.cached = self._counter("prompt_tokens_cached", "Prompt tokens that came from the prefix cache.")
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, ["model_name"], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, ["model_name"], registry=self.registry, buckets=buckets)

    def responded(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP answer; ``route`` is the route's pattern, so that clients can't invent labels. A stream has
        been answered when it begins."""
        self._http.labels(route, str(status)).inc()
        self._http_time.labels(route).observe(seconds)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that ``accept`` prefers."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def embedded(self, found: Sequence[Embedding]) -> None:
        """Count inputs that were made into vectors."""
        model = self._client.model_name
        for one in found:
            self.prompt.labels(model).observe(one.prompt_tokens)
        self.success.labels(model, "stop").inc(len(found))

    def watch(self, received: float, params: SamplingParams) -> Watch:
        """Measures one prompt's answers. ``received``: when the request came, in monotonic seconds."""
        return Watch(self, self._client.model_name, received, params)
