"""From a configuration to a decided engine: the model's facts, the device, one choice a slot. No weights.

:func:`resolve` decides; the ``build_*`` functions make the objects. A child process gets the plugin lock and
``LaunchConfig.to_mapping()`` and calls :func:`rebuild`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from octavo.config.compose import compose
from octavo.config.launch import AttentionSection, LaunchConfig, QuantizationSection, SpeculationSection
from octavo.device import probe_device
from octavo.errors import ConfigError
from octavo.loading.profile import like, read_profile
from octavo.plugins.host import PluginHost
from octavo.plugins.report import PluginLock
from octavo.records import ArchitectureRecord, Context, DeviceProfile, ModelProfile, OpRecord
from octavo.selection import Absent, Choice
from octavo.slot_choices import choose_all

if TYPE_CHECKING:
    from octavo.contracts.executor import Executor
    from octavo.contracts.proposer import Proposer
    from octavo.contracts.sampling import LogitsProcessor
    from octavo.contracts.scheduling import SchedulingPolicy


@dataclass(frozen=True)
class Resolved:
    """A decided engine.

    Keys of ``choices``: ``loader``, ``architecture``, ``quantization``, ``attention``, ``lora``, ``policy``,
    ``executor``, ``proposer``, ``structured``, ``ops.NAME``, ``logits_processors.N``, ``api.N``. A slot that is
    empty on purpose (``quantization`` of an unquantised model, ``proposer`` where nothing speculates,
    ``structured`` where nothing can hold an answer to a grammar, an operation left to torch)
    is in ``absent`` instead.
    """

    config: LaunchConfig
    host: PluginHost
    context: Context
    choices: Mapping[str, Choice[Any]]
    absent: Mapping[str, Absent]

    @property
    def ops(self) -> tuple[Choice[OpRecord], ...]:
        """Operations that a plugin implements; torch does the rest."""
        return self._listed("ops")

    @property
    def processors(self) -> tuple[Choice[Any], ...]:
        """Logits processors, in the order they are applied."""
        return self._listed("logits_processors")

    @property
    def speculates(self) -> bool:
        """Whether tokens are guessed ahead."""
        return "proposer" in self.choices

    def build_processors(self) -> list[LogitsProcessor]:
        """New processors, in the order of ``processors``."""
        return [choice.build(self.context, choice.options) for choice in self.processors]

    @property
    def guesses_on_device(self) -> bool:
        """Whether the proposer runs in the executor."""
        choice = self.choices.get("proposer")
        return choice is not None and bool(choice.record.on_device)

    def for_draft(
        self,
        path: str,
        *,
        loader: str,
        dtype: str,
        quantization: str,
        architecture: ArchitectureRecord | None,
        described: bool,
    ) -> Resolved:
        """Decide for a second model, which guesses what this one says. It shares device, blocks and lengths.

        ``architecture`` replaces the one that the checkpoint names. Where it is not ``described`` by a config.json,
        its facts are this model's. Raises what :func:`resolve` raises.
        """
        ctx = self.context
        profile = read_profile(path) if described else like(ctx.model, path)
        model = self.config.model.model_copy(
            update={"path": path, "name": None, "loader": loader, "loader_options": {}, "dtype": dtype}
        )
        config = self.config.model_copy(
            update={
                "model": model,
                "quantization": QuantizationSection(use=quantization),
                "attention": AttentionSection(prefer=[self.choices["attention"].name]),
                "speculation": SpeculationSection(),
                "lora": None,
                "logits_processors": [],
                "api": [],
            }
        )
        dtype = _dtype(config, profile, ctx.device)
        kv_dtype = dtype if config.cache.dtype == "auto" else config.cache.dtype
        ctx = replace(ctx, model=profile, dtype=dtype, kv_dtype=kv_dtype)
        choices, absent = choose_all(config, self.host, ctx, architecture)
        return Resolved(config, self.host, ctx, choices, absent)

    def _listed(self, slot: str) -> tuple[Choice[Any], ...]:
        return tuple(choice for key, choice in self.choices.items() if key.startswith(f"{slot}."))


def resolve(config: LaunchConfig, host: PluginHost) -> Resolved:
    """Read the model's facts, probe the device, choose for every slot.

    Raises :class:`CheckpointError` for the model, :class:`ConfigError` for settings that contradict it and
    :class:`PluginError` when a slot can't be filled.
    """
    profile = read_profile(config.model.path, name=config.model.name)
    ctx = make_context(config, profile, probe_device(config.model.device))
    choices, absent = choose_all(config, host, ctx)
    return Resolved(config, host, ctx, choices, absent)


def rebuild(lock: PluginLock, mapping: Mapping[str, Any]) -> Resolved:
    """The same engine in a child process, from ``host.lock()`` and ``config.to_mapping()``."""
    host = PluginHost.from_lock(lock)
    return resolve(compose(mapping, host), host)


def make_context(config: LaunchConfig, profile: ModelProfile, device: DeviceProfile) -> Context:
    """What plugins may know of the engine, with every ``auto`` of the configuration decided."""
    dtype = _dtype(config, profile, device)
    return Context(
        model=profile,
        device=device,
        dtype=dtype,
        kv_dtype=_kv_dtype(profile, dtype) if config.cache.dtype == "auto" else config.cache.dtype,
        block_size=config.cache.block_size,
        max_length=_max_length(config, profile),
        max_sequences=_sequences(config, device),
        max_batch_tokens=_batch_tokens(config, device),
        tensor_parallel=config.executor.tensor_parallel,
        pipeline_parallel=config.executor.pipeline_parallel,
        data_parallel=config.executor.data_parallel,
        seed=config.model.seed,
    )


def _dtype(config: LaunchConfig, profile: ModelProfile, device: DeviceProfile) -> str:
    if config.model.dtype != "auto":
        return config.model.dtype
    return "float32" if device.type == "cpu" else str(_gpu_dtype(profile.dtype))


def _sequences(config: LaunchConfig, device: DeviceProfile) -> int:
    wanted = config.scheduler.max_sequences
    if wanted == "auto":
        return 1024 if device.type != "cpu" and device.total_memory >= 64 * 2**30 else 256
    return wanted


def _batch_tokens(config: LaunchConfig, device: DeviceProfile) -> int:
    """On a CPU a step of 1,024 prompt tokens takes over a second, for which everyone's answers stand still."""
    wanted = config.scheduler.max_batch_tokens
    if wanted == "auto":
        return 1024 if device.type == "cpu" else 8192
    return wanted


def _kv_dtype(profile: ModelProfile, dtype: str) -> str:
    """FP8 where the checkpoint was quantised with a cache of that type."""
    stored = profile.quantization or {}
    scheme = stored.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8 and scheme.get("type", "float") == "float":
        return "fp8_e4m3"
    return "fp8_e4m3" if stored.get("kv_cache_quant_algo") == "FP8" else dtype


def _gpu_dtype(stored: str) -> Any:
    # float64 and 8-bit types are for storage: no engine computes in them.
    return stored if stored in ("float32", "float16", "bfloat16") else "bfloat16"


def _max_length(config: LaunchConfig, profile: ModelProfile) -> int:
    wanted = config.model.max_length
    if wanted == "auto":
        return profile.max_length
    if not 2 <= wanted <= profile.max_length:
        raise ConfigError(
            f"should be from 2 to {profile.max_length}, the context length of {profile.name}, not {wanted}.",
            "model.max_length",
        )
    return wanted


def build_policy(resolved: Resolved) -> SchedulingPolicy:
    """The scheduling policy, new."""
    choice = resolved.choices["policy"]
    policy: SchedulingPolicy = choice.build(choice.options)
    return policy


def build_proposer(resolved: Resolved) -> Proposer | None:
    """The proposer, new; ``None`` where nothing speculates, or the executor does."""
    choice = resolved.choices.get("proposer")
    if choice is None or resolved.guesses_on_device:
        return None
    proposer: Proposer = choice.build(resolved.context, choice.options)
    return proposer


def build_executor(resolved: Resolved) -> Executor:
    """The executor, with the model loaded. Takes as long as loading takes."""
    choice = resolved.choices["executor"]
    # Not through ``choice.build``: a failure in here may be any plugin's, and each names its own.
    executor: Executor = choice.record.build(resolved, choice.options)
    return executor


def build_processors(resolved: Resolved) -> list[LogitsProcessor]:
    """See :meth:`Resolved.build_processors`."""
    return resolved.build_processors()
