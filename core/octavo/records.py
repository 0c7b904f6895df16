"""Records: what plugins contribute.

A record is a frozen description of one thing a user may choose: its name, what it can do, what may be set, and
two functions. ``supports(ctx)`` returns ``None`` or the reason why not, in words a person can act on.
``build(ctx, options)`` makes the object that runs; only ``build`` may import torch or triton, so that listing
and explaining stay quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.config.schema import NoOptions, Section

HOOK_API = (1, 0)
"""Version of hooks, records and contracts. A plugin module may state ``OCTAVO_API = (major, minor)``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """What is known of a model before its weights are read: config.json or GGUF metadata, in one spelling.

    ``config`` is the Hugging Face configuration (for GGUF: its translation). ``dtype`` is the checkpoint's.
    ``digest`` identifies the weights for the prefix cache: equal for equal files, cheap to compute.
    """

    path: str
    name: str
    format: str  # "safetensors", "gguf" or "config" (no weights, for the dummy loader)
    architecture: str
    config: Mapping[str, Any]
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    dtype: str
    tied_embeddings: bool
    eos_ids: tuple[int, ...]
    quantization: Mapping[str, Any] | None
    generation: Mapping[str, Any]  # generation_config.json, or empty
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfile:
    """The device an engine runs on. Memory in bytes; ``capability`` is CUDA's (9, 0) or ``None``."""

    type: str  # "cpu" or "cuda"
    index: int
    name: str
    capability: tuple[int, int] | None
    total_memory: int
    free_memory: int
    cores: int

    @property
    def torch_name(self) -> str:
        """The name ``torch.device`` takes."""
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What ``supports`` and ``build`` may look at. Types are dtype names such as ``"bfloat16"``."""

    model: ModelProfile
    device: DeviceProfile
    dtype: str
    kv_dtype: str
    block_size: int
    max_length: int
    max_sequences: int
    max_batch_tokens: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    rank: int = 0
    seed: int = 0


def always(_: Context) -> str | None:
    """The ``supports`` of a record that works anywhere."""
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Base of all records.

    ``rank`` orders automatic choice: the highest supported one wins. A record with ``automatic=False`` is used
    only where the configuration names it.
    """

    name: str
    summary: str
    build: Callable[..., Any]
    options: type[Section] = NoOptions
    rank: int = 0
    automatic: bool = True
    supports: Callable[[Context], str | None] = always


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderRecord(Record):
    """``build`` returns a :class:`octavo.contracts.loading.ModelLoader`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchitectureRecord(Record):
    """``name`` is the Hugging Face architecture; ``build(ctx, options, parts)`` returns a ``CausalLM``."""


def no_remark(_: Context) -> str:
    """The ``remark`` of a record that runs the same way everywhere."""
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationRecord(Record):
    """``build`` returns a ``QuantScheme``. ``detect`` says whether a checkpoint is written in this scheme.

    ``remark``: how it runs on this device, where that is not what its name promises; ``explain`` prints it.
    """

    detect: Callable[[ModelProfile], bool] = field(default=lambda _: False)
    remark: Callable[[Context], str] = no_remark


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRecord(Record):
    """``build`` returns an :class:`octavo.contracts.attention.AttentionBackend`.

    ``compiles_ahead``: its kernels are launched through :func:`octavo.ahead.launch`.
    """

    graph_safe: bool = False
    compiles_ahead: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraRecord(Record):
    """``build`` returns a :class:`octavo.contracts.lora.LoraBackend`."""

    graph_safe: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class OpRecord(Record):
    """Another implementation of one operation of :mod:`octavo.ops`; ``op`` is its name there.

    ``compiles_ahead``: it runs on the meta device, its kernels launched through :func:`octavo.ahead.launch`.
    """

    op: str
    compiles_ahead: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeRecord(Record):
    """A C++ library that other records of the plugin use where it was compiled: see :mod:`octavo.native`.

    ``build()`` compiles it and returns its path; ``missing()`` answers ``None`` or why it can't be loaded yet.
    """

    missing: Callable[[], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRecord(Record):
    """``build(options)`` returns a :class:`octavo.contracts.scheduling.SchedulingPolicy`. Pure Python.

    ``uses_priority``: whether it heeds priorities. Where it does not, requests that bring one are refused.
    """

    uses_priority: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposerRecord(Record):
    """``build`` returns a :class:`octavo.contracts.proposer.Proposer`. Used only where the configuration asks.

    With ``on_device``, ``build(ctx, options, kit)`` is called in the executor, with a
    :class:`octavo.contracts.proposer.DraftKit`, and returns a :class:`octavo.contracts.proposer.DeviceProposer`.
    """

    on_device: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StructuredOutputRecord(Record):
    """``build(ctx, options, vocabulary)`` returns a :class:`octavo.contracts.structured.StructuredBackend`. Called
    in a thread when the first request asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitsProcessorRecord(Record):
    """``build`` returns a :class:`octavo.contracts.sampling.LogitsProcessor`.

    ``speculation_safe``: correct when several positions of a row are judged in one step; the row then stands
    several times in ``apply``'s ``rows``, and ``accept`` hears of the tokens that were kept, one call a token.
    Requests that use a processor which is not safe are not speculated on.
    ``argmax_invariant``: never changes which token has the highest logit.
    """

    speculation_safe: bool
    argmax_invariant: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorRecord(Record):
    """``build(resolved, options)`` returns an :class:`octavo.contracts.executor.Executor`; ``resolved`` is an
    :class:`octavo.assemble.Resolved`. ``supports`` says whether it runs as many ranks as the context asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolParserRecord(Record):
    """``build(tools)`` returns a :class:`octavo.contracts.tools.ToolParser` for one answer; ``tools`` are the
    request's, as OpenAI's API has them.

    ``detect``: whether a chat template (Jinja source) has its model write calls like this. ``special_tokens``: the
    marks of a call may be special tokens, which answers must then keep. ``id_length``: of the ids of calls, where
    the template is particular about it.
    """

    detect: Callable[[str], bool] = field(default=lambda _: False)
    special_tokens: bool = False
    id_length: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiRecord(Record):
    """``build(client, options)`` returns an :class:`octavo.contracts.api.ApiSurface`."""
