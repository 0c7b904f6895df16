"""quantization_config of GPTQ, AWQ and auto-round checkpoints, strictly read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo.errors import CheckpointError
from octavo.records import ModelProfile
from octavo_quant.skips import listed, skipper

GPTQ, GPTQ_V2, AWQ, AWQ_GEMV = "gptq", "gptq_v2", "awq", "awq-gemv"
_GPTQ_BITS: Final = (2, 3, 4, 8)
_AWQ_VERSIONS: Final = {"gemm": AWQ, "gemv": AWQ_GEMV}
_PACKINGS: Final = {
    "auto_round:auto_gptq": GPTQ,
    "auto_round:gptqmodel": GPTQ_V2,  # zero points as they are
    "auto_round": GPTQ_V2,
    "auto_round:auto_awq": AWQ,
}
_PATH: Final = re.compile(r"[\w.]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one module is written. ``layout`` is one of this module's constants; ``group_size`` -1: all inputs."""

    layout: str
    bits: int
    group_size: int
    ordered: bool = False


SettingsOf = Callable[[str], Settings | None]
"""A module's settings by its path, or ``None`` where it is not quantised."""


def read_settings(profile: ModelProfile) -> SettingsOf:
    """From ``quantization_config``. Raises :class:`CheckpointError` for what can't be right."""
    config = profile.quantization or {}
    where = profile.path
    method = str(config.get("quant_method", "")).lower()
    if method == "gptq":
        return _gptq(config, where)
    if method == "awq":
        return _awq(config, where)
    return _auto_round(config, where)


def packing_of(config: Mapping[str, Any]) -> str | None:
    """The layout of an auto-round checkpoint, or ``None`` where it is none of integers here."""
    if str(config.get("data_type", "int")) != "int":
        return None
    return _PACKINGS.get(str(config.get("packing_format", "auto_round:auto_gptq")))


def _gptq(config: Mapping[str, Any], where: str) -> SettingsOf:
    stored = config.get("checkpoint_format") or config.get("format") or "gptq"
    if stored not in (GPTQ, GPTQ_V2):
        raise CheckpointError(
            f"{where}: quantization_config.checkpoint_format is {stored!r}; 'gptq' and 'gptq_v2' are read. "
            "Repacked formats of other engines can be saved as 'gptq' by the tool that made them."
        )
    if config.get("pack_dtype", "int32") != "int32":
        raise CheckpointError(
            f"{where}: quantization_config.pack_dtype is {config['pack_dtype']!r}, but only int32 is read."
        )
    base = _settings(config, where, stored, _GPTQ_BITS)
    head = bool(config.get("lm_head", False))
    overrides = _dynamic(config, where)
    skip = skipper(listed(config, where))
    only = _only(config, where)

    def settings_of(module: str) -> Settings | None:
        if skip(module) or (only and module != "lm_head" and not any(module.endswith(f".{each}") for each in only)):
            return None
        change = overrides(module)
        if change is None or (module == "lm_head" and not head and not change):
            return None
        return _settings({**config, **change}, f"{where}, module {module}", stored, _GPTQ_BITS) if change else base

    return settings_of


def _dynamic(config: Mapping[str, Any], where: str) -> Callable[[str], Mapping[str, Any] | None]:
    """``dynamic`` of GPTQModel: patterns to overrides, the first that fits the module's beginning; ``-:`` before a
    pattern leaves modules out."""
    found: list[tuple[bool, re.Pattern[str], Mapping[str, Any]]] = []
    for pattern, change in (config.get("dynamic") or {}).items():
        text = pattern.removeprefix("-:").removeprefix("+:")
        try:
            found.append((pattern.startswith("-:"), re.compile(text), change or {}))
        except re.error as error:
            raise CheckpointError(
                f"{where}: quantization_config.dynamic has the pattern {pattern!r}, which is no regular "
                f"expression: {error}."
            ) from error

    def overrides(module: str) -> Mapping[str, Any] | None:
        for negative, pattern, change in found:
            if pattern.match(module):
                return None if negative else change
        return {}

    return overrides


def _only(config: Mapping[str, Any], where: str) -> list[str]:
    """``modules_in_block_to_quantize``: endings of the modules that are quantised, grouped or not."""
    value = config.get("modules_in_block_to_quantize") or []
    flat = [name for each in value for name in ([each] if isinstance(each, str) else each)]
    if not all(isinstance(name, str) for name in flat):
        raise CheckpointError(
            f"{where}: quantization_config.modules_in_block_to_quantize must be lists of names, not {value!r}."
        )
    return flat


def _awq(config: Mapping[str, Any], where: str) -> SettingsOf:
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    if version not in _AWQ_VERSIONS:
        raise CheckpointError(
            f"{where}: quantization_config.version is {version!r}; AWQ's {' and '.join(_AWQ_VERSIONS)} are read."
        )
    base = _settings(config, where, _AWQ_VERSIONS[version], (4,))
    skip = skipper(listed(config, where))
    head = bool(config.get("lm_head", False))
    return lambda module: None if skip(module) or (module == "lm_head" and not head) else base


def _auto_round(config: Mapping[str, Any], where: str) -> SettingsOf:
    layout = packing_of(config)
    if layout is None:
        raise CheckpointError(
            f"{where}: quantization_config.packing_format is {config.get('packing_format')!r} with data_type "
            f"{config.get('data_type')!r}; integers packed as {', '.join(_PACKINGS)} are read."
        )
    allowed = (4,) if layout == AWQ else _GPTQ_BITS
    base = _settings(config, where, layout, allowed)
    extra = config.get("extra_config") or {}
    blocks = _blocks(config)
    skip = skipper(listed(config, where))
    patterns = [(_named(name, where), change) for name, change in extra.items()]

    def settings_of(module: str) -> Settings | None:
        change = extra.get(module)
        if change is None:
            change = next((found for fits, found in patterns if fits(module)), None)
        if change is None:
            inside = not blocks or any(module.startswith(f"{block}.") for block in blocks)
            return None if skip(module) or not inside or module == "lm_head" else base
        if int(change.get("bits", base.bits)) >= 16:
            return None
        return _settings({**config, **change}, f"{where}, module {module}", layout, allowed)

    return settings_of


def _named(name: str, where: str) -> Callable[[str], bool]:
    """Whether a key of ``extra_config`` means a module: a path or part of one, else a pattern found anywhere."""
    if _PATH.fullmatch(name):
        return lambda module: f".{name}." in f".{module}."
    try:
        pattern = re.compile(name)
    except re.error as error:
        raise CheckpointError(
            f"{where}: quantization_config.extra_config has {name!r}, which is neither a path nor a regular "
            f"expression: {error}."
        ) from error
    return lambda module: pattern.search(module) is not None


def _blocks(config: Mapping[str, Any]) -> list[str]:
    """``block_name_to_quantize``: a name, names with commas between, or a list (of lists)."""
    value = config.get("block_name_to_quantize") or config.get("to_quant_block_names") or []
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [name for each in value for name in ([each] if isinstance(each, str) else each)]


def _settings(config: Mapping[str, Any], where: str, layout: str, allowed: tuple[int, ...]) -> Settings:
    bits = config.get("bits", config.get("w_bit", config.get("wbits")))
    group = config.get("group_size", config.get("q_group_size", -1))
    if bits not in allowed:
        names = ", ".join(map(str, allowed))
        raise CheckpointError(f"{where}: quantization_config.bits is {bits!r}; {layout} is read with {names}.")
    if not isinstance(group, int) or isinstance(group, bool) or (group != -1 and group <= 0):
        raise CheckpointError(
            f"{where}: quantization_config.group_size is {group!r}; it must be -1 or a positive number."
        )
    return Settings(layout, int(bits), group, bool(config.get("desc_act", False)))
