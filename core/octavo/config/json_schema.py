"""The JSON schema of a launch file, for the plugins that are installed: what editors complete from."""

from __future__ import annotations

from typing import Any, Final

from octavo.config.binding import LISTS, SINGLE
from octavo.config.launch import LaunchConfig
from octavo.plugins.host import PluginHost
from octavo.plugins.slots import BY_KEY, Slot

_DEFINITIONS: Final = {
    "scheduler": "SchedulerSection",
    "attention": "AttentionSection",
    "quantization": "QuantizationSection",
    "lora": "LoraSection",
    "speculation": "SpeculationSection",
    "structured_outputs": "StructuredSection",
    "executor": "ExecutorSection",
    "logits_processors": "ProcessorSection",
    "api": "ApiSection",
}


def launch_schema(host: PluginHost) -> dict[str, Any]:
    """JSON schema (2020-12) in which each ``use`` lists the names there are, and ``options`` follow from it."""
    schema = LaunchConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Octavo launch configuration"
    definitions: dict[str, Any] = schema["$defs"]
    for name, slot_key in {**SINGLE, **LISTS}.items():
        reserved = BY_KEY[slot_key].reserved if name in SINGLE else frozenset[str]()
        _discriminate(definitions, _DEFINITIONS[name], host, BY_KEY[slot_key], "use", "options", reserved)
    _discriminate(
        definitions, "ModelSection", host, BY_KEY["loader"], "loader", "loader_options", frozenset({"auto"})
    )
    _allow_short_forms(schema)
    return schema


def _discriminate(
    definitions: dict[str, Any],
    definition: str,
    host: PluginHost,
    slot: Slot,
    use: str,
    options: str,
    reserved: frozenset[str],
) -> None:
    section = definitions[definition]
    default = section["properties"][use].get("default", "auto")
    records = [contribution.record for contribution in host.contributions(slot.key)]
    section["properties"][use]["enum"] = [*sorted(reserved), *(record.name for record in records)]
    rules: list[dict[str, Any]] = []
    for record in records:
        model = record.options.model_json_schema(ref_template=f"#/$defs/{slot.key}.{record.name}.{{model}}")
        for name, inner in model.pop("$defs", {}).items():
            definitions[f"{slot.key}.{record.name}.{name}"] = inner
        model["description"] = f"Options of {slot.noun} {record.name!r}. {record.summary}"
        condition: dict[str, Any] = {"properties": {use: {"const": record.name}}}
        if record.name != default:  # an absent key stands for the default
            condition["required"] = [use]
        rules.append({"if": condition, "then": {"properties": {options: model}}})
    if rules:
        section["allOf"] = rules


def _allow_short_forms(schema: dict[str, Any]) -> None:
    """``attention: torch`` for ``attention: {use: torch}``, and the same for items of a list."""
    for name in SINGLE:
        section = schema["properties"][name]
        full = section.pop("$ref", None) or section.pop("anyOf")[0]["$ref"]  # a section may be absent
        definition = schema["$defs"][full.rpartition("/")[2]]
        section["anyOf"] = [{"$ref": full}, {"enum": definition["properties"]["use"]["enum"]}]
    for name in LISTS:
        section = schema["properties"][name]
        full = section["items"]
        definition = schema["$defs"][full["$ref"].rpartition("/")[2]]
        section["items"] = {"anyOf": [full, {"enum": definition["properties"]["use"]["enum"]}]}
