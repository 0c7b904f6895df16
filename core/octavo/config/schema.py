"""The sections of a launch configuration whose shape does not depend on plugins.

Sections that choose a plugin (``use`` + ``options``) get their exact types from the plugins that are
installed: see :mod:`octavo.config.compose`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every configuration model: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NoOptions(Section):
    """For records that have nothing to set."""


class PluginsSection(Section):
    """Which plugins are loaded, beside those found through entry points."""

    autoload: bool = Field(True, description="Load every installed `octavo.plugins` entry point.")
    enable: list[str] = Field([], description="Entry points to load when `autoload` is false.")
    disable: list[str] = Field([], description="Entry points not to load.")
    load: list[str] = Field([], description="Modules (`pkg.mod`) or files (`./plugin.py`) to load as well.")


class ModelSection(Section):
    """The model to serve."""

    path: str = Field(
        "bundled:smollm2-135m-instruct",
        description="A checkpoint folder, a .gguf file, or `bundled:NAME`.",
    )
    name: str | None = Field(None, description="Name shown to clients; default: from the path.")
    loader: str = Field("auto", description="How weights come in: `auto`, `safetensors`, `gguf`, `dummy`, …")
    loader_options: dict[str, Any] = Field({}, description="Options of the loader.")
    tokenizer: str | None = Field(None, description="Folder or file of the tokenizer; default: the model's.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Type of weights and activations; auto: float32 on a CPU, the checkpoint's on a GPU.",
    )
    max_length: int | Literal["auto"] = Field("auto", description="Longest prompt + answer, in tokens.")
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`; auto: the first GPU, else the CPU.")
    threads: int | None = Field(None, ge=1, description="CPU threads of the engine; default: all cores.")
    chat_template: str | None = Field(None, description="Path of a Jinja file that replaces the model's.")
    seed: int = Field(0, description="Seed for requests that bring none, and for dummy weights.")
    trust_remote_code: bool = Field(False, description="Run Python code that ships with the checkpoint.")


class CacheSection(Section):
    """The KV cache."""

    block_size: int = Field(16, ge=1, le=256, description="Tokens a block.")
    memory: float = Field(0.92, gt=0, le=1, description="Share of the GPU's memory that Octavo may use.")
    cpu_memory_gib: float = Field(2.0, gt=0, description="KV cache size on a CPU, in GiB.")
    blocks: int | None = Field(None, ge=2, description="Number of blocks; overrides the memory settings.")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8_e4m3"] = "auto"
    prefix_caching: bool = Field(True, description="Reuse the KV blocks of equal prompt beginnings.")


class SchedulerLimits(Section):
    """The part of `scheduler` that belongs to the core, whatever the policy."""

    max_sequences: int = Field(256, ge=1, le=4096, description="Sequences running at once.")
    max_batch_tokens: int = Field(8192, ge=1, description="Token budget of one step.")
    max_queue: int = Field(4096, ge=1, description="Waiting requests; one more is refused with 503.")


class ParallelSection(Section):
    """How many ranks the model is spread over."""

    tensor_parallel: int = Field(1, ge=1)
    pipeline_parallel: int = Field(1, ge=1)
    data_parallel: int = Field(1, ge=1)


class AdapterSection(Section):
    """A LoRA adapter that is known from the start."""

    name: str
    path: str
