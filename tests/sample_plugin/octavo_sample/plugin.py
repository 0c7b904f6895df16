"""The plugin: what it contributes, by name. Light to import; ``build`` functions import what they need."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from octavo.hookspecs import hookimpl
from octavo.records import ApiRecord, Context, LogitsProcessorRecord, PolicyRecord
from octavo_sample import command
from octavo_sample.options import NudgeOptions, SampleApiOptions, ShortestFirstOptions

if TYPE_CHECKING:
    from octavo.contracts.api import ApiSurface, EngineClient, RequestSummary
    from octavo.contracts.sampling import LogitsProcessor
    from octavo.contracts.scheduling import SchedulingPolicy

OCTAVO_API = (1, 0)
_log = logging.getLogger("octavo.sample")


def _build_policy(options: ShortestFirstOptions) -> SchedulingPolicy:
    from octavo_sample.policy import ShortestFirst

    return ShortestFirst(options)


def _build_nudge(ctx: Context, options: NudgeOptions) -> LogitsProcessor:
    from octavo_sample.processor import Nudge

    return Nudge(ctx.model.vocab_size, options)


def _build_surface(client: EngineClient, options: SampleApiOptions) -> ApiSurface:
    from octavo_sample.surface import SampleSurface

    return SampleSurface(client)


@hookimpl
def octavo_scheduling_policies() -> Iterable[PolicyRecord]:
    """Contribute ``shortest-first``."""
    yield PolicyRecord(
        name="shortest-first",
        summary="The request with the fewest tokens first; requests seem shorter as they age.",
        options=ShortestFirstOptions,
        build=_build_policy,
        rank=-10,  # never by itself: who wants it names it
    )


@hookimpl
def octavo_logits_processors() -> Iterable[LogitsProcessorRecord]:
    """Contribute ``nudge``."""
    yield LogitsProcessorRecord(
        name="nudge",
        summary="Bans tokens, or makes them more or less likely.",
        options=NudgeOptions,
        build=_build_nudge,
        speculation_safe=True,  # looks at no earlier token
        argmax_invariant=False,
    )


@hookimpl
def octavo_api_surfaces() -> Iterable[ApiRecord]:
    """Contribute ``sample``."""
    yield ApiRecord(
        name="sample", summary="One route, /sample/ping.", options=SampleApiOptions, build=_build_surface
    )


@hookimpl
def octavo_commands(app: Any) -> None:
    """Add ``octavo sample``."""
    app.add("sample", "Try the shortest-first policy on a simulated device.", command.configure, command.run)


@hookimpl
def octavo_request_finished(summary: RequestSummary) -> None:
    """Log a line for each request."""
    _log.info("%s: %d tokens, %s", summary.request_id, summary.output_tokens, summary.finish_reason)
