"""From a decided engine to one that runs; and what a process of its own is started with."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from octavo.assemble import Resolved, build_executor, build_policy, build_proposer, rebuild
from octavo.cache.blocks import BlockPool
from octavo.cache.prefix import root_hash
from octavo.config.launch import LaunchConfig
from octavo.contracts.executor import Executor, GuessingExecutor
from octavo.engine.adapters import build_adapters
from octavo.engine.core import EngineCore
from octavo.engine.messages import Ready
from octavo.engine.structured import build_structured
from octavo.errors import ConfigError
from octavo.params import SamplingParams
from octavo.plugins.report import PluginLock
from octavo.records import Context
from octavo.scheduling.device_speculator import DeviceSpeculator
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.speculating import Speculating
from octavo.scheduling.speculator import Speculator

_log = logging.getLogger("octavo.engine")


class Boot(msgspec.Struct, frozen=True):
    """What an engine process needs: ``launch`` is :meth:`LaunchConfig.to_mapping`, ``folder`` holds the sockets,
    ``log_level`` is that of the logger ``octavo``."""

    lock: PluginLock
    launch: dict[str, Any]
    folder: str
    log_level: int

    def build(self) -> EngineCore:
        """Load the plugins of the lock, compose the configuration again, and build the engine."""
        return build_core(rebuild(self.lock, self.launch))


def build_core(resolved: Resolved) -> EngineCore:
    """Load the model and put the loop around it.

    Raises what :func:`octavo.assemble.build_executor` raises, and :class:`ConfigError` when the KV cache can't
    hold one request of the length that was asked for.
    """
    config, context = resolved.config, resolved.context
    executor = build_executor(resolved)
    try:
        adapters = slots = None
        if config.lora is not None:
            adapters, slots = build_adapters(executor, resolved.choices["executor"].name, config.lora)
        pool = BlockPool(executor.num_blocks)
        max_length = _max_length(config, context, pool.total * context.block_size)
        scheduler = Scheduler(
            pool=pool,
            policy=build_policy(resolved),
            policy_name=resolved.choices["policy"].name,
            block_size=context.block_size,
            max_sequences=context.max_sequences,
            max_batch_tokens=context.max_batch_tokens,
            max_length=max_length,
            max_queue=config.scheduler.max_queue,
            prefix_caching=config.cache.prefix_caching,
            adapters=slots,
            speculator=_speculator(resolved, executor),
        )
        processors = resolved.build_processors()
        structured = build_structured(resolved)
    except BaseException:
        executor.stop()
        raise

    def root(adapter_digest: str | None, cache_salt: str | None) -> bytes:
        return root_hash(context.model.digest, context.kv_dtype, adapter_digest, cache_salt)

    def validate(params: SamplingParams) -> None:
        for processor in processors:
            processor.validate(params)

    ready = Ready(
        context=context,
        num_blocks=pool.total,
        max_length=max_length,
        max_queue=config.scheduler.max_queue,
        processors=[choice.name for choice in resolved.processors],
        uses_priority=resolved.choices["policy"].record.uses_priority,
        adapters=None if adapters is None else adapters.listing(),
        structured_off=structured.reason,
    )
    unsafe = [
        processor
        for processor, choice in zip(processors, resolved.processors, strict=True)
        if not choice.record.speculation_safe
    ]
    return EngineCore(
        scheduler=scheduler,
        executor=executor,
        ready=ready,
        root=root,
        validate=validate,
        unsafe=unsafe if resolved.speculates else (),
        adapters=adapters,
        structured=structured,
    )


def _speculator(resolved: Resolved, executor: Executor) -> Speculating | None:
    if not resolved.speculates:
        return None
    choice, context = resolved.choices["proposer"], resolved.context
    if resolved.guesses_on_device:
        longest = executor.longest_guess if isinstance(executor, GuessingExecutor) else 0
        if not longest:
            name = resolved.choices["executor"].name
            raise ConfigError(
                f"{choice.name!r} guesses on the device, which executor {name!r} can't do.", "speculation"
            )
        tokens, fixed = context.max_batch_tokens, not resolved.config.speculation.adapt
        return DeviceSpeculator(choice.name, longest, context.max_sequences, tokens, fixed)
    proposer = build_proposer(resolved)
    assert proposer is not None
    fixed = not resolved.config.speculation.adapt
    return Speculator(proposer, choice.name, context.model.vocab_size, context.max_sequences, fixed)


def _max_length(config: LaunchConfig, context: Context, capacity: int) -> int:
    """The context length, or what the cache can hold of it."""
    if capacity >= context.max_length:
        return context.max_length
    if config.model.max_length != "auto":
        raise ConfigError(
            f"is {context.max_length}, but the KV cache holds {capacity} tokens. Lower it, or give the cache more "
            f"memory (cache.blocks, cache.memory, cache.cpu_memory_gib).",
            "model.max_length",
        )
    _log.warning(
        "the KV cache holds %d tokens, so the context length is that instead of the model's %d",
        capacity,
        context.max_length,
    )
    return capacity
