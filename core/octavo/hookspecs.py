"""Every hook of Octavo, on one page.

Three kinds. *Contribute* hooks yield frozen records (:mod:`octavo.records`); all answers are collected.
*Decide* hooks return a name or ``None`` to leave the choice to others; the first answer wins. *Observe* hooks
are told what happened; what they raise is logged with the plugin's name and stops nothing.

An implementation may take any subset of a hook's arguments::

    from octavo import hookimpl

    @hookimpl
    def octavo_scheduling_policies():
        yield PolicyRecord(name="sjf", summary="Shortest job first.", build=ShortestJobFirst)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from octavo import records

if TYPE_CHECKING:
    from octavo.contracts.api import Arrival, RequestSummary

PROJECT = "octavo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def octavo_model_loaders() -> Iterable[records.LoaderRecord]:
    """Contribute ways of reading weights."""
    return ()


@hookspec
def octavo_architectures() -> Iterable[records.ArchitectureRecord]:
    """Contribute model architectures, named as in ``config.json``'s ``architectures``."""
    return ()


@hookspec
def octavo_quantizations() -> Iterable[records.QuantizationRecord]:
    """Contribute quantisation schemes."""
    return ()


@hookspec
def octavo_attention_backends() -> Iterable[records.AttentionRecord]:
    """Contribute attention backends."""
    return ()


@hookspec
def octavo_ops() -> Iterable[records.OpRecord]:
    """Contribute faster implementations of the operations in :mod:`octavo.ops`, whose torch reference is the
    meaning, the default and the test oracle."""
    return ()


@hookspec
def octavo_native_libraries() -> Iterable[records.NativeRecord]:
    """Contribute C++ libraries, which ``octavo native build`` compiles (:mod:`octavo.native`)."""
    return ()


@hookspec
def octavo_scheduling_policies() -> Iterable[records.PolicyRecord]:
    """Contribute scheduling policies."""
    return ()


@hookspec
def octavo_lora_backends() -> Iterable[records.LoraRecord]:
    """Contribute ways of serving LoRA adapters. One is used where the configuration has a ``lora`` section."""
    return ()


@hookspec
def octavo_proposers() -> Iterable[records.ProposerRecord]:
    """Contribute ways of guessing tokens ahead, which the core verifies. Active where ``speculation`` asks."""
    return ()


@hookspec
def octavo_logits_processors() -> Iterable[records.LogitsProcessorRecord]:
    """Contribute changes to logits before sampling. Active where the configuration lists them."""
    return ()


@hookspec
def octavo_structured_outputs() -> Iterable[records.StructuredOutputRecord]:
    """Contribute ways of holding answers to a JSON schema, a regular expression, a choice or a grammar."""
    return ()


@hookspec
def octavo_executors() -> Iterable[records.ExecutorRecord]:
    """Contribute places where the ranks of a model run."""
    return ()


@hookspec
def octavo_tool_parsers() -> Iterable[records.ToolParserRecord]:
    """Contribute ways in which models write tool calls, for API surfaces to read."""
    return ()


@hookspec
def octavo_api_surfaces() -> Iterable[records.ApiRecord]:
    """Contribute HTTP surfaces. Served only where the configuration names them."""
    return ()


@hookspec
def octavo_commands(app: Any) -> None:
    """Contribute subcommands of ``octavo``: call ``app.add(name, summary, configure, run)``."""


@hookspec(firstresult=True)
def octavo_select_attention(ctx: records.Context, candidates: Sequence[str]) -> str | None:
    """Decide the attention backend; ``candidates`` are the names that support ``ctx``, best first."""


@hookspec(firstresult=True)
def octavo_select_quantization(ctx: records.Context, candidates: Sequence[str]) -> str | None:
    """Decide the quantisation scheme; ``candidates`` are those that recognise the checkpoint."""


@hookspec(firstresult=True)
def octavo_select_adapter(arrival: Arrival, adapters: Sequence[str]) -> str | None:
    """Decide the LoRA adapter of a request, at admission; ``adapters`` are the names served."""


@hookspec
def octavo_engine_started(ctx: records.Context) -> None:
    """Observe that an engine is ready to serve."""


@hookspec
def octavo_engine_stopping() -> None:
    """Observe that an engine is about to stop."""


@hookspec
def octavo_request_finished(summary: RequestSummary) -> None:
    """Observe a finished request. Called off the step thread; skipped where nobody implements it."""
