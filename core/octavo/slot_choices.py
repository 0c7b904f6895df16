"""What each slot of an engine gets: the rules that differ from slot to slot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from octavo.config.launch import LaunchConfig
from octavo.config.schema import Section
from octavo.errors import PluginError, nearest
from octavo.plugins.host import PluginHost
from octavo.plugins.report import Contribution
from octavo.plugins.slots import BY_KEY
from octavo.records import ArchitectureRecord, Context, ModelProfile, OpRecord, QuantizationRecord
from octavo.selection import Absent, Choice, candidates, choose

Choices = dict[str, Choice[Any]]
Absents = dict[str, Absent]
_UNDETECTED: Final = "does not recognise this checkpoint's quantization_config"


def choose_all(
    config: LaunchConfig, host: PluginHost, ctx: Context, architecture: ArchitectureRecord | None = None
) -> tuple[Choices, Absents]:
    """A choice, or the reason for none, for every slot; :class:`PluginError` where a slot can't be filled.

    ``architecture`` is taken instead of the one that the checkpoint names."""
    model, hint = config.model, host.not_loaded()
    choices: Choices = {
        "loader": choose(
            BY_KEY["loader"],
            host.model_loaders(),
            ctx,
            model.loader,
            options=_options(model.loader_options),
            path="model.loader",
            hint=hint,
        ),
        "architecture": _architecture(host, ctx, model.trust_remote_code)
        if architecture is None
        else choose(BY_KEY["architecture"], [], ctx, architecture),
    }
    absent: Absents = {}
    scheme = _quantization(config, host, ctx)
    if isinstance(scheme, Absent):
        absent["quantization"] = scheme
    else:
        choices["quantization"] = scheme
    if config.speculation.use == "none":
        absent["proposer"] = Absent("none", "not asked for", candidates(host.proposers(), ctx))
    choices |= _plain_slots(config, host, ctx)
    backend = _structured(config, host, ctx)
    if isinstance(backend, Absent):
        absent["structured"] = backend
    else:
        choices["structured"] = backend
    if config.lora is None:
        offered = candidates(host.lora_backends(), ctx)
        absent["lora"] = Absent("none", "the configuration has no lora section", offered)
    _ops(config, host, ctx, choices, absent)
    return choices, absent


def _plain_slots(config: LaunchConfig, host: PluginHost, ctx: Context) -> Choices:
    """The slots without rules of their own."""
    wanted: list[tuple[str, str, Any]] = [
        ("attention", "attention", config.attention),
        ("policy", "scheduler", config.scheduler),
        ("executor", "executor", config.executor),
    ]
    if config.lora is not None:
        wanted.append(("lora", "lora", config.lora))
    if config.speculation.use != "none":
        wanted.append(("proposer", "speculation", config.speculation))
    for slot in ("logits_processors", "api"):
        wanted += [(f"{slot}.{i}", f"{slot}.{i}", section) for i, section in enumerate(getattr(config, slot))]
    choices: Choices = {}
    for key, path, section in wanted:
        slot_key = key.partition(".")[0]
        choices[key] = choose(
            BY_KEY[slot_key],
            host.contributions(slot_key),
            ctx,
            section.use,
            prefer=getattr(section, "prefer", ()),
            decide=partial(host.select_attention, ctx) if section is config.attention else None,
            options=_options(section.options),
            path=f"{path}.use",
            hint=host.not_loaded(),
        )
    return choices


def _options(value: Any) -> Section | None:
    return value if isinstance(value, Section) else None


def _architecture(host: PluginHost, ctx: Context, trusted: bool) -> Choice[Any]:
    name = ctx.model.architecture
    found = [item for item in host.architectures() if item.record.name == name]
    if not found:
        check_remote_code(ctx.model, trusted)
        names = [item.record.name for item in host.architectures()]
        raise PluginError(
            f"{ctx.model.path}: no loaded plugin contributes the architecture {name!r}.{nearest(name, names)} "
            f"Contributed: {', '.join(names) or 'none'}.{host.not_loaded()}"
        )
    return choose(BY_KEY["architecture"], found, ctx, name, path="the model's architecture", hint=host.not_loaded())


def check_remote_code(profile: ModelProfile, trusted: bool) -> None:
    """The one gate for code that ships with a checkpoint. Nothing in the core runs such code, so it refuses both
    the untrusted and, for want of a plugin that could run it, the trusted. Raises :class:`PluginError`."""
    if "auto_map" not in profile.config:
        return
    what = f"{profile.path}: {profile.architecture!r} is defined by Python code inside the checkpoint (auto_map)"
    if trusted:
        raise PluginError(f"{what}; model.trust_remote_code allows it, but no loaded plugin runs such code.")
    raise PluginError(
        f"{what}, and Octavo does not run code from checkpoints: use a plugin that contributes the architecture."
    )


def _quantization(config: LaunchConfig, host: PluginHost, ctx: Context) -> Choice[Any] | Absent:
    use, stored = config.quantization.use, ctx.model.quantization
    contributed = host.quantizations()
    unused = isinstance(use, str) and use in BY_KEY["quantization"].reserved
    if stored is None and (use == "none" or (unused and not any(_takes(item.record, ctx) for item in contributed))):
        return Absent("none", "the checkpoint is not quantised", candidates(contributed, ctx))
    if stored is not None and use == "none":
        raise PluginError(
            f"quantization.use: is 'none', but {ctx.model.path} is quantised ({_method(stored)}): use 'auto'."
        )
    if stored is not None and unused and not any(_detects(item.record, ctx.model) for item in contributed):
        known = "; ".join(f"{item.record.name}: {item.record.summary}" for item in contributed)
        raise PluginError(
            f"{ctx.model.path} is quantised ({_method(stored)}), and no loaded plugin recognises it. "
            f"Schemes there are: {known or 'none'}.{host.not_loaded()}"
        )
    return choose(
        BY_KEY["quantization"],
        contributed,
        ctx,
        use,
        decide=partial(host.select_quantization, ctx),
        options=_options(config.quantization.options),
        judge=_judge_scheme if stored is not None else _judge_taker if unused else None,
        path="quantization.use",
        hint=host.not_loaded(),
    )


def _structured(config: LaunchConfig, host: PluginHost, ctx: Context) -> Choice[Any] | Absent:
    """A backend where there is one that works; requests that would need it are refused with the reason."""
    use, contributed = config.structured_outputs.use, host.structured_outputs()
    offered = candidates(contributed, ctx)
    if use == "none":
        return Absent("none", "switched off by structured_outputs.use", offered)
    if use == "auto" and not any(item.supported for item in offered):
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in offered)
        return Absent("none", reasons or "no loaded plugin contributes a backend", offered)
    return choose(
        BY_KEY["structured"],
        contributed,
        ctx,
        use,
        options=_options(config.structured_outputs.options),
        path="structured_outputs.use",
        hint=host.not_loaded(),
    )


def _judge_scheme(record: QuantizationRecord, ctx: Context) -> str | None:
    return record.supports(ctx) if record.detect(ctx.model) else _UNDETECTED


def _judge_taker(record: QuantizationRecord, ctx: Context) -> str | None:
    return None if _takes(record, ctx) else _UNDETECTED


def _detects(record: QuantizationRecord, profile: ModelProfile) -> bool:
    try:
        return bool(record.detect(profile))
    except Exception:
        return True  # broken, and so the error should come from choosing, which names it


def _takes(record: QuantizationRecord, ctx: Context) -> bool:
    """Whether a scheme would by itself take a checkpoint that names none, such as a .gguf file."""
    try:
        return record.automatic and bool(record.detect(ctx.model)) and record.supports(ctx) is None
    except Exception:
        return False  # not asked for: where it is, choosing names what broke


def _method(stored: Mapping[str, Any]) -> str:
    return f"quant_method {stored.get('quant_method', 'not stated')!r}"


def _reference(_: Context, __: Section) -> None:
    return None


def _ops(config: LaunchConfig, host: PluginHost, ctx: Context, choices: Choices, absent: Absents) -> None:
    """One choice an operation, among the plugins' and torch's own, which is last unless preferred."""
    for op in dict.fromkeys(item.record.op for item in host.ops()):
        record = OpRecord(name="reference", summary="Plain torch.", op=op, build=_reference, rank=-1)
        reference = Contribution(record, "", "", "", "'reference' (the core)")
        mine = [item for item in host.ops() if item.record.op == op]
        choice = choose(BY_KEY["ops"], [*mine, reference], ctx, prefer=config.ops.prefer, path="ops.use")
        if choice.record is record:
            absent[f"ops.{op}"] = Absent(record.name, choice.reason, choice.candidates)
        else:
            choices[f"ops.{op}"] = choice
