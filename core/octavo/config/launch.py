"""The whole launch configuration as one frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from octavo.config.schema import (
    AdapterSection,
    CacheSection,
    ModelSection,
    Options,
    ParallelSection,
    PluginsSection,
    ResolverSection,
    SchedulerLimits,
    Section,
    StructuredLimits,
    Use,
)
from octavo.errors import ConfigError
from octavo.records import Record


class SchedulerSection(SchedulerLimits):
    """The order in which requests run, and the limits of a step."""

    use: Use = Field(default="fcfs", description="Scheduling policy; `auto`: the one of highest rank.")
    options: Options = Field(default={}, description="Options of the policy.")


class AttentionSection(Section):
    """The attention backend."""

    use: Use = Field(default="auto", description="Attention backend; `auto`: the best that works here.")
    prefer: list[str] = Field(default=[], description="With `auto`: names to try first, in this order.")
    options: Options = Field(default={}, description="Options of the backend that `use` names.")


class QuantizationSection(Section):
    """How the weights of linear layers are stored."""

    use: Use = Field(
        default="auto", description="Scheme; `auto`: the checkpoint's own; `none`: an unquantised checkpoint."
    )
    options: Options = Field(default={}, description="Options of the scheme that `use` names.")


class SpeculationSection(Section):
    """Tokens guessed ahead and verified in one step. Answers stay what they are."""

    use: Use = Field(default="none", description="Proposer; `none`: off; `auto`: the one of highest rank.")
    options: Options = Field(default={}, description="Options of the proposer that `use` names.")
    adapt: bool = Field(
        default=True, description="Draft only as much as measured times and acceptance make worth while."
    )


class StructuredSection(StructuredLimits):
    """Answers held to a JSON schema, a regular expression, a choice or a grammar, where a request asks for it."""

    use: Use = Field(default="auto", description="Backend; `auto`: the best that works here, if any; `none`: off.")
    options: Options = Field(default={}, description="Options of the backend that `use` names.")


class OpsSection(Section):
    """Fused operations."""

    prefer: list[str] = Field(
        default=[], description="Implementations to try first, for each operation; `reference` is torch's."
    )


class LoraSection(Section):
    """LoRA adapters. Without this section there are none, and they cost nothing."""

    use: Use = Field(default="auto", description="LoRA backend; `auto`: the best that works here.")
    options: Options = Field(default={}, description="Options of the backend that `use` names.")
    adapters: list[AdapterSection] = Field(default=[], description="Adapters that are there from the start.")
    host_memory_gib: float = Field(
        default=8.0, gt=0, description="Host memory for adapters, in GiB; the others are read again when need be."
    )
    resolver: ResolverSection | None = Field(
        default=None, description="Where to look for adapters that are not loaded; absent: nowhere."
    )


class ProcessorSection(Section):
    """One logits processor that requests may use."""

    use: Use = Field(description="Logits processor.")
    options: Options = Field(default={}, description="Options of the processor.")


class ExecutorSection(ParallelSection):
    """Where the ranks of the model run, and how many there are."""

    use: Use = Field(default="auto", description="Executor; `auto`: the best that runs this many ranks.")
    options: Options = Field(default={}, description="Options of the executor that `use` names.")


class ApiSection(Section):
    """One surface that is served."""

    use: Use = Field(description="API surface.")
    options: Options = Field(default={}, description="Options of the surface.")


class LaunchConfig(Section):
    """Everything that decides how an engine is launched. Made by :func:`octavo.config.compose.load_launch`."""

    plugins: PluginsSection = Field(default=PluginsSection(), description="Which plugins are loaded.")
    model: ModelSection = Field(default=ModelSection(), description="The model to serve.")
    cache: CacheSection = Field(default=CacheSection(), description="The KV cache.")
    scheduler: SchedulerSection = Field(default=SchedulerSection(), description="Order and limits of steps.")
    attention: AttentionSection = Field(default=AttentionSection(), description="The attention backend.")
    quantization: QuantizationSection = Field(
        default=QuantizationSection(), description="How the weights of linear layers are stored."
    )
    speculation: SpeculationSection = Field(
        default=SpeculationSection(), description="Tokens guessed ahead and verified in one step."
    )
    structured_outputs: StructuredSection = Field(
        default=StructuredSection(), description="Answers held to a schema or grammar."
    )
    ops: OpsSection = Field(default=OpsSection(), description="Fused operations.")
    lora: LoraSection | None = Field(default=None, description="LoRA adapters; absent: none.")
    logits_processors: list[ProcessorSection] = Field(
        default=[], description="Changes to logits before sampling, in the order they are applied."
    )
    executor: ExecutorSection = Field(default=ExecutorSection(), description="Where the ranks run.")
    api: list[ApiSection] = Field(default=[], description="Surfaces to serve; default: `openai`, if there is one.")

    def to_mapping(self) -> dict[str, Any]:
        """Plain data from which :func:`octavo.config.compose.compose` builds an equal configuration.

        Secrets are in clear: send it through a pipe, never on a command line or into a log. Raises
        :class:`ConfigError` when a section holds a record given in Python, which can't leave its process.
        """
        mapping: dict[str, Any] = _plain(self, "")
        return mapping


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Record):
        raise ConfigError(
            f"{value.name!r} was given as a Python object and can't go to another process: contribute it "
            f"from a plugin and use its name, or run the engine inline.",
            path,
        )
    if isinstance(value, BaseModel):
        return {
            field.alias or name: _plain(getattr(value, name), _join(path, name))
            for name, field in type(value).model_fields.items()
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, _join(path, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, _join(path, str(index))) for index, item in enumerate(value)]
    if isinstance(value, (SecretStr, SecretBytes)):
        return _plain(value.get_secret_value(), path)
    return to_jsonable_python(value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
