"""The built-in plugin: what the core brings itself, through the same door as everybody's plugins.

``build`` functions import what they need when they are called, so that listing this plugin stays quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from octavo.config.schema import NoOptions
from octavo.hookspecs import hookimpl
from octavo.records import (
    ArchitectureRecord,
    AttentionRecord,
    Context,
    ExecutorRecord,
    LoaderRecord,
    PolicyRecord,
)

if TYPE_CHECKING:
    from octavo.assemble import Resolved
    from octavo.contracts.attention import AttentionBackend
    from octavo.contracts.executor import Executor
    from octavo.contracts.loading import ModelLoader
    from octavo.contracts.model import CausalLM
    from octavo.contracts.scheduling import SchedulingPolicy

OCTAVO_API = (1, 0)
_KV_TYPES: Final = ("float32", "float16", "bfloat16", "fp8_e4m3")
_FORMATS: Final = {
    "safetensors": "safetensors files",
    "gguf": "a .gguf file",
    "config": "a config.json without weights",
}


def _needs_format(ctx: Context, wanted: str) -> str | None:
    stored = ctx.model.format
    return None if stored == wanted else f"reads {_FORMATS[wanted]}; the model is {_FORMATS.get(stored, stored)}"


def _reads_safetensors(ctx: Context) -> str | None:
    return _needs_format(ctx, "safetensors")


def _reads_gguf(ctx: Context) -> str | None:
    return _needs_format(ctx, "gguf")


def _build_safetensors(_: Context, __: NoOptions) -> ModelLoader:
    from octavo.loading.safetensors import SafetensorsLoader

    return SafetensorsLoader()


def _build_gguf(_: Context, __: NoOptions) -> ModelLoader:
    from octavo.loading.gguf import GgufLoader

    return GgufLoader()


def _build_dummy(ctx: Context, _: NoOptions) -> ModelLoader:
    from octavo.loading.dummy import DummyLoader

    return DummyLoader(seed=ctx.seed)


@hookimpl
def octavo_model_loaders() -> Iterable[LoaderRecord]:
    """Safetensors, GGUF, and random weights."""
    yield LoaderRecord(
        name="safetensors",
        summary="A Hugging Face checkpoint folder with safetensors files.",
        build=_build_safetensors,
        supports=_reads_safetensors,
    )
    yield LoaderRecord(
        name="gguf",
        summary="A .gguf file, dequantised while loading.",
        build=_build_gguf,
        supports=_reads_gguf,
    )
    yield LoaderRecord(
        name="dummy",
        summary="Random weights in the shape of a config.json, for benchmarks.",
        build=_build_dummy,
        automatic=False,
    )


def _build_llama(ctx: Context, _: NoOptions, parts: Any) -> CausalLM:
    from octavo.model.llama import build_llama

    return build_llama(ctx, parts)


@hookimpl
def octavo_architectures() -> Iterable[ArchitectureRecord]:
    """Llama, and Mistral, which is Llama with a sliding window."""
    for name in ("LlamaForCausalLM", "MistralForCausalLM"):
        yield ArchitectureRecord(
            name=name,
            summary="Decoder with grouped-query attention, rotary positions and SwiGLU.",
            build=_build_llama,
        )


def _plain_kv(ctx: Context) -> str | None:
    if ctx.kv_dtype in _KV_TYPES:
        return None
    return f"keeps keys and values as {', '.join(_KV_TYPES)}, not {ctx.kv_dtype}"


def _build_torch_attention(ctx: Context, _: NoOptions) -> AttentionBackend:
    from octavo.attention.torch_paged import TorchAttention

    return TorchAttention(ctx)


@hookimpl
def octavo_attention_backends() -> Iterable[AttentionRecord]:
    """Plain torch: runs anywhere, and is what other backends are measured against."""
    yield AttentionRecord(
        name="torch",
        summary="Paged attention in plain torch: runs anywhere.",
        build=_build_torch_attention,
        supports=_plain_kv,
    )


def _build_fcfs(_: NoOptions) -> SchedulingPolicy:
    from octavo.scheduling.policies import FcfsPolicy

    return FcfsPolicy()


def _build_priority(_: NoOptions) -> SchedulingPolicy:
    from octavo.scheduling.policies import PriorityPolicy

    return PriorityPolicy()


@hookimpl
def octavo_scheduling_policies() -> Iterable[PolicyRecord]:
    """First come, first served, and priorities."""
    yield PolicyRecord(name="fcfs", summary="First come, first served.", build=_build_fcfs)
    yield PolicyRecord(
        name="priority",
        summary="The request of lowest priority number first; equals as they came.",
        build=_build_priority,
        uses_priority=True,
        rank=-1,
    )


def _one_rank(ctx: Context) -> str | None:
    ranks = {
        "tensor_parallel": ctx.tensor_parallel,
        "pipeline_parallel": ctx.pipeline_parallel,
        "data_parallel": ctx.data_parallel,
    }
    asked = [f"executor.{name} is {count}" for name, count in ranks.items() if count > 1]
    return f"runs one rank in the engine's process, and {' and '.join(asked)}" if asked else None


def _build_inline(resolved: Resolved, _: NoOptions) -> Executor:
    from octavo.run.inline import InlineExecutor

    return InlineExecutor(resolved)


@hookimpl
def octavo_executors() -> Iterable[ExecutorRecord]:
    """One rank in the engine's own process."""
    yield ExecutorRecord(
        name="inline",
        summary="One rank in the engine's own process.",
        build=_build_inline,
        supports=_one_rank,
    )
