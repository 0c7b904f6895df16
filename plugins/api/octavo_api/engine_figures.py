"""The engine's own figures for Prometheus, read from the client when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.contracts.api import EngineClient
from octavo.errors import ConfigError

PREFIX: Final = "octavo:"


class EngineFigures(Collector):
    """One family a figure; none before the engine knows its model."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def collect(self) -> Iterable[Metric]:
        """See ``prometheus_client``."""
        try:
            model = self._client.model_name
        except ConfigError:
            return
        stats = self._client.stats()
        for name, text, count in self._counts():
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            counter.add_metric([model], getattr(stats, count))
            yield counter
        for name, text, value in self._states():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            gauge.add_metric([model], value)
            yield gauge
        yield self._per_position(model)

    def _states(self) -> Iterator[tuple[str, str, float]]:
        stats = self._client.stats()
        usage = stats.used_blocks / stats.total_blocks if stats.total_blocks else 0.0
        yield "num_requests_running", "Requests in the running batch.", stats.running
        yield "num_requests_waiting", "Requests waiting to run.", stats.waiting
        yield "kv_cache_usage_perc", "Share of the KV cache's blocks in use; 1 is all.", usage
        yield (
            "spec_decode_off",
            "1 where a proposer failed and was switched off.",
            float(bool(stats.speculation_off)),
        )
        yield (
            "engine_heartbeat_age_seconds",
            "Since the engine's last sign of life.",
            self._client.health().heartbeat_age,
        )

    def _per_position(self, model: str) -> Metric:
        counter = CounterMetricFamily(
            PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Drafts that were right up to this position.",
            labels=["model_name", "position"],
        )
        for position, count in enumerate(self._client.stats().accepted_at):
            counter.add_metric([model, str(position)], count)
        return counter

    def _counts(self) -> Iterator[tuple[str, str, str]]:
        yield "prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prefix_queries"
        yield "prefix_cache_hits", "Prompt tokens found in the prefix cache.", "prefix_hits"
        yield "num_preemptions", "Requests set back to be computed again.", "preemptions"
        yield "prompt_tokens", "Prompt tokens taken in.", "prompt_tokens"
        yield "generation_tokens", "Tokens generated.", "generated_tokens"
        yield "spec_decode_num_drafts", "Drafts that were verified.", "drafts"
        yield "spec_decode_num_draft_tokens", "Tokens guessed ahead.", "drafted"
        yield "spec_decode_num_accepted_tokens", "Guessed tokens that were right.", "accepted"
        yield "engine_steps", "Steps that the engine has run.", "steps"
