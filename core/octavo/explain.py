"""Why an engine would be what it is: each slot's record, each candidate's reason, and the memory plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.assemble import Resolved
from octavo.errors import OctavoError
from octavo.plugins.report import PluginStatus
from octavo.records import QuantizationRecord
from octavo.selection import Candidate

_SIZES = (
    "weights_bytes",
    "kv_bytes_per_block",
    "num_blocks",
    "kv_bytes",
    "activation_bytes",
    "sequences_at_max_length",
)


@dataclass(frozen=True, slots=True)
class SlotReport:
    """One slot: what was chosen, by whom it was contributed, why, the options that are not at their default, and
    how the candidates did."""

    slot: str
    chosen: str
    plugin: str
    reason: str
    options: Mapping[str, Any]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """``model`` and ``device`` are facts by name; ``memory`` the plan's sizes, empty where there is no plan;
    ``memory_lines`` the plan in words, or why there is none."""

    model: Mapping[str, Any]
    device: Mapping[str, Any]
    slots: tuple[SlotReport, ...]
    memory: Mapping[str, Any]
    memory_lines: tuple[str, ...]
    plugins: tuple[PluginStatus, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Everything as lines for a terminal."""
        blocks = [
            _facts("Model", self.model),
            _facts("Device", self.device),
            "\n".join(["Slots", *(line for slot in self.slots for line in _slot_lines(slot))]),
            "\n".join(["Memory", *(f"  {line}" for line in self.memory_lines)]),
        ]
        missing = [f"  {item.label}: {item.status}, {item.reason}" for item in self.plugins if item.reason]
        if missing:
            blocks.append("\n".join(["Plugins not loaded", *missing]))
        return "\n\n".join(blocks)


def explain(resolved: Resolved) -> Explanation:
    """Explain a resolved engine. Plans memory without loading weights, which imports torch."""
    memory, lines = _memory(resolved)
    return Explanation(
        _model_facts(resolved),
        _device_facts(resolved),
        tuple(_slots(resolved)),
        memory,
        lines,
        tuple(resolved.host.report()),
    )


def _model_facts(resolved: Resolved) -> dict[str, Any]:
    ctx, model = resolved.context, resolved.context.model
    stored = (model.quantization or {}).get("quant_method", "no")
    return {
        "name": model.name,
        "path": model.path,
        "format": model.format,
        "architecture": model.architecture,
        "layers": model.num_layers,
        "hidden size": model.hidden_size,
        "heads": f"{model.num_heads} of {model.head_dim}, {model.num_kv_heads} for keys and values",
        "vocabulary": model.vocab_size,
        "quantised": stored,
        "dtype": f"{ctx.dtype} (checkpoint: {model.dtype}), KV cache {ctx.kv_dtype}",
        "max length": f"{ctx.max_length} (model: {model.max_length})",
    }


def _device_facts(resolved: Resolved) -> dict[str, Any]:
    device = resolved.context.device
    return {
        "name": device.name,
        "type": device.torch_name,
        "cores": device.cores,
        "memory": f"{device.total_memory / 2**30:.1f} GiB, {device.free_memory / 2**30:.1f} GiB free",
    }


def _slots(resolved: Resolved) -> list[SlotReport]:
    reports = []
    for key, choice in resolved.choices.items():
        options = choice.options.model_dump(mode="json", exclude_defaults=True)
        # What it costs: see Scheduler.overlaps.
        reason = f"{choice.reason}; steps overlap while it rests" if key == "proposer" else choice.reason
        if isinstance(choice.record, QuantizationRecord) and (remark := choice.record.remark(resolved.context)):
            reason = f"{reason}; {remark}"
        reports.append(SlotReport(key, choice.name, choice.label, reason, options, choice.candidates))
    for key, absent in resolved.absent.items():
        reports.append(SlotReport(key, absent.name, "", absent.reason, {}, absent.candidates))
    return reports


def _memory(resolved: Resolved) -> tuple[dict[str, Any], tuple[str, ...]]:
    from octavo.run.memory import plan_memory

    try:
        plan = plan_memory(resolved)
    except OctavoError as error:
        # The slots are worth seeing even where the model does not fit.
        return {}, (str(error),)
    return {name: getattr(plan, name) for name in _SIZES}, tuple(plan.lines)


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    width = max(map(len, facts))
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in facts.items())])


def _slot_lines(slot: SlotReport) -> list[str]:
    by = f", plugin {slot.plugin}" if slot.plugin else ""
    lines = [f"  {slot.slot}: {slot.chosen} ({slot.reason}{by})"]
    lines += [f"      {name} = {value}" for name, value in slot.options.items()]
    for candidate in slot.candidates:
        if candidate.name != slot.chosen:
            reason = candidate.reason or "works here"
            lines.append(f"    {'-' if candidate.supported else 'x'} {candidate.name}: {reason}")
    return lines
