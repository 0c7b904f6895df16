"""The typed face of the plugins: one method a hook. The rest of the core never touches pluggy."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from octavo.config.schema import PluginsSection
from octavo.errors import OctavoError, PluginError
from octavo.plugins import loading, sources
from octavo.plugins.choosing import Wish, wishes
from octavo.plugins.commands import Command, CommandRegistry
from octavo.plugins.report import Contribution, Decision, LockedPlugin, PluginLock, PluginStatus
from octavo.records import (
    ApiRecord,
    ArchitectureRecord,
    AttentionRecord,
    Context,
    ExecutorRecord,
    LoaderRecord,
    LogitsProcessorRecord,
    LoraRecord,
    NativeRecord,
    OpRecord,
    PolicyRecord,
    ProposerRecord,
    QuantizationRecord,
    StructuredOutputRecord,
    ToolParserRecord,
)

if TYPE_CHECKING:
    from octavo.contracts.api import Arrival, RequestSummary

_log = logging.getLogger("octavo.plugins")


class PluginHost:
    """The loaded plugins of one engine. Contributions are collected once, while loading."""

    def __init__(self, registry: loading.Registry) -> None:
        self._registry = registry

    @classmethod
    def load(cls, section: PluginsSection | None = None, objects: Sequence[object] = ()) -> PluginHost:
        """Load the plugins that ``section`` wants, and ``objects`` given in Python.

        Raises :class:`PluginError` for a name that does not exist, for a plugin that was asked for and is
        broken, and for two plugins that claim one name.
        """
        return cls(loading.load(wishes(section or PluginsSection(), objects)))

    @classmethod
    def from_lock(cls, lock: PluginLock) -> PluginHost:
        """Load exactly the plugins of ``lock``, in its order. Anything that differs here is an error."""
        return cls(loading.load([Wish(sources.locked(entry), asked=True) for entry in lock.plugins]))

    def lock(self) -> PluginLock:
        """What a child process needs to load the same plugins.

        Raises :class:`PluginError` when a plugin was given as a Python object: it exists in this process only.
        """
        entries = []
        for source in self._registry.sources:
            if source.kind == "object":
                raise PluginError(
                    f"plugin {source.label} is an object of this process and can't go to another one: put it "
                    f"into a module and name that in plugins.load, or run the engine inline."
                )
            entries.append(
                LockedPlugin(source.name, source.value, source.distribution, source.version, source.kind)
            )
        return PluginLock(tuple(entries))

    def report(self) -> list[PluginStatus]:
        """One line for each known plugin, in loading order: loaded, disabled or failed."""
        return list(self._registry.statuses)

    def contributions(self, slot: str) -> tuple[Contribution[Any], ...]:
        """What was contributed to a slot, by its key in :mod:`octavo.plugins.slots`."""
        return self._registry.contributions[slot]

    def not_loaded(self) -> str:
        """The disabled and failed plugins with the reason, as a sentence for messages; empty if there are none."""
        missing = [f"{status.label}: {status.status}, {status.reason}" for status in self.report() if status.reason]
        return f" Not loaded: {'; '.join(missing)}." if missing else ""

    def model_loaders(self) -> tuple[Contribution[LoaderRecord], ...]:
        """Answers of ``octavo_model_loaders``."""
        return self.contributions("loader")

    def architectures(self) -> tuple[Contribution[ArchitectureRecord], ...]:
        """Answers of ``octavo_architectures``."""
        return self.contributions("architecture")

    def quantizations(self) -> tuple[Contribution[QuantizationRecord], ...]:
        """Answers of ``octavo_quantizations``."""
        return self.contributions("quantization")

    def attention_backends(self) -> tuple[Contribution[AttentionRecord], ...]:
        """Answers of ``octavo_attention_backends``."""
        return self.contributions("attention")

    def ops(self) -> tuple[Contribution[OpRecord], ...]:
        """Answers of ``octavo_ops``."""
        return self.contributions("ops")

    def native_libraries(self) -> tuple[Contribution[NativeRecord], ...]:
        """Answers of ``octavo_native_libraries``."""
        return self.contributions("native")

    def lora_backends(self) -> tuple[Contribution[LoraRecord], ...]:
        """Answers of ``octavo_lora_backends``."""
        return self.contributions("lora")

    def scheduling_policies(self) -> tuple[Contribution[PolicyRecord], ...]:
        """Answers of ``octavo_scheduling_policies``."""
        return self.contributions("policy")

    def proposers(self) -> tuple[Contribution[ProposerRecord], ...]:
        """Answers of ``octavo_proposers``."""
        return self.contributions("proposer")

    def logits_processors(self) -> tuple[Contribution[LogitsProcessorRecord], ...]:
        """Answers of ``octavo_logits_processors``."""
        return self.contributions("logits_processors")

    def structured_outputs(self) -> tuple[Contribution[StructuredOutputRecord], ...]:
        """Answers of ``octavo_structured_outputs``."""
        return self.contributions("structured")

    def executors(self) -> tuple[Contribution[ExecutorRecord], ...]:
        """Answers of ``octavo_executors``."""
        return self.contributions("executor")

    def tool_parsers(self) -> tuple[Contribution[ToolParserRecord], ...]:
        """Answers of ``octavo_tool_parsers``."""
        return self.contributions("tool_parsers")

    def api_surfaces(self) -> tuple[Contribution[ApiRecord], ...]:
        """Answers of ``octavo_api_surfaces``."""
        return self.contributions("api")

    def commands(self, taken: Collection[str] = ()) -> dict[str, Command]:
        """Subcommands by name; ``taken`` names are the core's. A plugin that fails here is logged and left out,
        but two that want one name are an error."""
        commands: dict[str, Command] = {}
        for source, caller in self._registry.callers["octavo_commands"]:
            try:
                caller(app=CommandRegistry(source.label, taken, commands))
            except PluginError:
                raise
            except Exception as error:
                _log.warning("plugin %s can't add its commands: %s: %s", source.label, type(error).__name__, error)
        return commands

    def select_attention(self, ctx: Context, candidates: Sequence[str]) -> Decision | None:
        """The attention backend that a plugin decides on, or ``None``."""
        return self._decide("octavo_select_attention", candidates, ctx=ctx, candidates=tuple(candidates))

    def select_quantization(self, ctx: Context, candidates: Sequence[str]) -> Decision | None:
        """The quantisation scheme that a plugin decides on, or ``None``."""
        return self._decide("octavo_select_quantization", candidates, ctx=ctx, candidates=tuple(candidates))

    def select_adapter(self, arrival: Arrival, adapters: Sequence[str]) -> str | None:
        """The adapter that a plugin decides on for a request, or ``None``."""
        decision = self._decide("octavo_select_adapter", adapters, arrival=arrival, adapters=tuple(adapters))
        return decision.name if decision else None

    @property
    def selects_adapters(self) -> bool:
        """Whether any plugin implements ``octavo_select_adapter``."""
        return bool(self._registry.callers["octavo_select_adapter"])

    def _decide(self, hook: str, allowed: Sequence[str], **arguments: Any) -> Decision | None:
        """The first answer. Raises :class:`PluginError` naming the plugin if it fails or is not ``allowed``;
        an :class:`OctavoError` that a plugin raises on purpose goes through as it is."""
        for source, caller in self._registry.callers[hook]:
            try:
                answer = caller(**arguments)
            except OctavoError:
                raise
            except Exception as error:
                raise PluginError(
                    f"plugin {source.label} failed in {hook}: {type(error).__name__}: {error}"
                ) from error
            if answer is None:
                continue
            if answer not in allowed:
                raise PluginError(
                    f"plugin {source.label} answered {hook} with {answer!r}; it may answer "
                    f"{', '.join(map(repr, allowed)) or 'nothing'} or None."
                )
            return Decision(answer, source.name)
        return None

    def engine_started(self, ctx: Context) -> None:
        """Tell observers that an engine is ready."""
        self._observe("octavo_engine_started", ctx=ctx)

    def engine_stopping(self) -> None:
        """Tell observers that an engine is about to stop."""
        self._observe("octavo_engine_stopping")

    @property
    def observes_requests(self) -> bool:
        """Whether any plugin implements ``octavo_request_finished``; if not, don't build a summary."""
        return bool(self._registry.callers["octavo_request_finished"])

    def request_finished(self, summary: RequestSummary) -> None:
        """Tell observers of a finished request. Call it off the step thread."""
        self._observe("octavo_request_finished", summary=summary)

    def _observe(self, hook: str, **arguments: Any) -> None:
        for source, caller in self._registry.callers[hook]:
            try:
                caller(**arguments)
            except Exception:
                _log.exception("plugin %s failed in %s", source.label, hook)
