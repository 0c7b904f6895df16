"""The slots that contributions fill: which hook asks for which record, and what to call the thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo import records


@dataclass(frozen=True, slots=True)
class Slot:
    """One contribute hook. ``noun`` is for messages; ``reserved`` names have a meaning of their own."""

    key: str
    hook: str
    record: type[records.Record]
    noun: str
    reserved: frozenset[str] = frozenset({"auto"})

    @property
    def a_noun(self) -> str:
        """The noun with its article."""
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    def identity(self, record: records.Record) -> str:
        """What must be unique in the slot: the name, and for an operation the operation as well."""
        return f"{record.op}/{record.name}" if isinstance(record, records.OpRecord) else record.name


SLOTS: Final[tuple[Slot, ...]] = (
    Slot("loader", "octavo_model_loaders", records.LoaderRecord, "model loader"),
    Slot("architecture", "octavo_architectures", records.ArchitectureRecord, "architecture"),
    Slot(
        "quantization",
        "octavo_quantizations",
        records.QuantizationRecord,
        "quantisation scheme",
        frozenset({"auto", "none"}),
    ),
    Slot("attention", "octavo_attention_backends", records.AttentionRecord, "attention backend"),
    Slot("ops", "octavo_ops", records.OpRecord, "operation", frozenset({"auto", "reference"})),
    Slot("native", "octavo_native_libraries", records.NativeRecord, "native library"),
    Slot("lora", "octavo_lora_backends", records.LoraRecord, "LoRA backend"),
    Slot("policy", "octavo_scheduling_policies", records.PolicyRecord, "scheduling policy"),
    Slot("proposer", "octavo_proposers", records.ProposerRecord, "proposer", frozenset({"auto", "none"})),
    Slot("logits_processors", "octavo_logits_processors", records.LogitsProcessorRecord, "logits processor"),
    Slot(
        "structured",
        "octavo_structured_outputs",
        records.StructuredOutputRecord,
        "structured-outputs backend",
        frozenset({"auto", "none"}),
    ),
    Slot("executor", "octavo_executors", records.ExecutorRecord, "executor"),
    Slot(
        "tool_parsers",
        "octavo_tool_parsers",
        records.ToolParserRecord,
        "tool parser",
        frozenset({"auto", "none"}),
    ),
    Slot("api", "octavo_api_surfaces", records.ApiRecord, "API surface"),
)
BY_KEY: Final[dict[str, Slot]] = {slot.key: slot for slot in SLOTS}
