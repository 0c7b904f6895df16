"""The sections of a launch configuration whose shape does not depend on plugins.

Sections that choose a plugin (``use`` + ``options``) get their exact types from the plugins that are
installed: see :mod:`octavo.config.compose`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema


class Section(BaseModel):
    """Base of every configuration model: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NoOptions(Section):
    """For records that have nothing to set."""


def _check_use(value: Any) -> Any:
    from octavo.records import Record  # records build on this module

    if isinstance(value, Record) or (isinstance(value, str) and value):
        return value
    raise ValueError("should be a name (in Python: a name or a record)")


def _check_options(value: Any) -> Any:
    if isinstance(value, (Mapping, Section)):
        return value
    raise ValueError("should be a mapping of options")


Use = Annotated[Any, PlainValidator(_check_use), WithJsonSchema({"type": "string"})]
"""Which record a slot takes: its name. Python callers may give the record itself, which then needs no plugin."""

Options = Annotated[Any, PlainValidator(_check_options), WithJsonSchema({"type": "object"})]
"""Options of the record in ``use``: a mapping as it is read, the record's own ``Section`` once composed."""


class PluginsSection(Section):
    """Which plugins are loaded, beside those found through entry points."""

    autoload: bool = Field(default=True, description="Load every installed `octavo.plugins` entry point.")
    enable: list[str] = Field(
        default=[], description="Entry points that must load; with `autoload: false` no others do."
    )
    disable: list[str] = Field(default=[], description="Entry points not to load.")
    load: list[str] = Field(
        default=[],
        description="Modules (`pkg.mod`) or files (`./plugin.py`, from the working directory) to load as well.",
    )


class ModelSection(Section):
    """The model to serve."""

    path: str = Field(
        default="bundled:smollm2-135m-instruct",
        description="A checkpoint folder, a .gguf file, or `bundled:NAME`.",
    )
    name: str | None = Field(default=None, description="Name shown to clients; default: from the path.")
    loader: Use = Field(
        default="auto", description="How weights come in: `auto`, `safetensors`, `gguf`, `dummy`, …"
    )
    loader_options: Options = Field(default={}, description="Options of the loader.")
    tokenizer: str | None = Field(
        default=None, description="Folder or file of the tokenizer; default: the model's."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Type of weights and activations; auto: float32 on a CPU, the checkpoint's on a GPU.",
    )
    max_length: int | Literal["auto"] = Field(default="auto", description="Longest prompt + answer, in tokens.")
    device: str = Field(default="auto", description="`cpu`, `cuda`, `cuda:1`; auto: the first GPU, else the CPU.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the engine; default: all cores.")
    chat_template: str | None = Field(default=None, description="Path of a Jinja file that replaces the model's.")
    seed: int = Field(default=0, description="Seed for requests that bring none, and for dummy weights.")
    trust_remote_code: bool = Field(default=False, description="Run Python code that ships with the checkpoint.")


class CacheSection(Section):
    """The KV cache."""

    block_size: int = Field(default=16, ge=1, le=256, description="Tokens a block.")
    memory: float = Field(default=0.92, gt=0, le=1, description="Share of the GPU's memory that Octavo may use.")
    cpu_memory_gib: float = Field(default=4.0, gt=0, description="KV cache size on a CPU, in GiB.")
    blocks: int | None = Field(default=None, ge=2, description="Number of blocks; overrides the memory settings.")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8_e4m3"] = "auto"
    prefix_caching: bool = Field(default=True, description="Reuse the KV blocks of equal prompt beginnings.")


class SchedulerLimits(Section):
    """The part of `scheduler` that belongs to the core, whatever the policy."""

    max_sequences: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        default="auto", description="Sequences running at once; auto: 256, on a GPU of 64 GiB and more 1024."
    )
    max_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="Token budget of one step; auto: 1024 on a CPU, 8192 on a GPU."
    )
    max_queue: int = Field(default=4096, ge=1, description="Waiting requests; one more is refused with 429.")


class StructuredLimits(Section):
    """The part of `structured_outputs` that belongs to the core, whatever the backend."""

    max_bytes: int = Field(
        default=65536, ge=1, description="Largest schema, expression, choice or grammar, in bytes."
    )
    max_depth: int = Field(default=64, ge=1, le=256, description="Deepest nesting of a JSON schema.")
    compile_timeout: float = Field(
        default=10.0, gt=0, description="Seconds that compiling may take; a request that needs longer is refused."
    )
    compile_threads: int = Field(default=2, ge=1, le=64, description="Grammars compiled at once.")
    cached: int = Field(default=256, ge=1, description="Compiled grammars kept for later requests.")


class ParallelSection(Section):
    """How many ranks the model is spread over."""

    tensor_parallel: int = Field(default=1, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    data_parallel: int = Field(default=1, ge=1)


class AdapterSection(Section):
    """A LoRA adapter that is known from the start."""

    name: str = Field(min_length=1, max_length=256, description="The `model` that clients ask for.")
    path: str = Field(description="A PEFT adapter folder.")
    pinned: bool = Field(default=False, description="Keep it on the device, whatever else is asked for.")


class ResolverSection(Section):
    """Where adapters are that clients may ask for before they were loaded."""

    folder: str = Field(description="A folder with one PEFT adapter folder for each name.")
