"""``adapter_config.json``: what of it matters, and what is refused because it would change the answers.

Keys that are not known here are ignored: PEFT adds some with every release, and what they do to the weights shows
in the tensors, every one of which is checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo.errors import CheckpointError

CONFIG_FILE: Final = "adapter_config.json"
_MOST_BYTES: Final = 2**20
_MOST_PATTERN: Final = 256
_CONVERT: Final = (
    "Convert it to a plain adapter with PEFT: model.save_pretrained(folder, "
    "path_initial_model_for_weight_conversion=...), giving the adapter as it was before training"
)
_ALTERED_BASE: Final = {
    "pissa": f"PiSSA changes the base model's weights, which other requests share. {_CONVERT}",
    "olora": f"OLoRA changes the base model's weights, which other requests share. {_CONVERT}",
    "corda": f"CorDA changes the base model's weights, which other requests share. {_CONVERT}",
    "lora_ga": f"LoRA-GA changes the base model's weights, which other requests share. {_CONVERT}",
    "loftq": "LoftQ quantises the base model's weights for this one adapter. Serve the base model that was saved "
    "with it, and set init_lora_weights to true",
}
_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal")
_UNSUPPORTED: Final = {
    "trainable_token_indices": "trained token embeddings are not supported: merge them into the base model",
    "target_parameters": "adapters on bare parameters (experts) are not supported",
    "layer_replication": "replicated layers change the model's shape",
    "alora_invocation_tokens": "aLoRA adapters, which begin at a token, are not supported",
    "use_qalora": "QALoRA adapters pool their inputs, which is not supported",
    "use_bdlora": "block-diagonal adapters are not supported",
    "arrow_config": "Arrow routes between adapters, which is not supported",
    "monteclora_config": "MonteCLoRA adapters are not supported",
    "kasa_config": "KaSA adapters are not supported",
    "ensure_weight_tying": "adapters that embedding and output head share are not supported; train them untied",
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "modules_to_save": (list, type(None)),
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "bias": (str,),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one adapter. Patterns are module-path suffixes, or regular expressions for them. ``saved``
    names modules that the adapter brings whole."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    dora: bool
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank that the settings give a module."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the module's low-rank product is multiplied by."""
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return float(alpha / math.sqrt(rank) if self.rslora else alpha / rank)

    def canonical(self) -> str:
        """The same text for the same settings."""
        parts = [self.rank, self.alpha, self.rslora, list(self.rank_pattern.items())]
        return json.dumps([*parts, list(self.alpha_pattern.items()), self.dora])


def read_settings(folder: Path) -> Settings:
    """Raises :class:`CheckpointError` saying which setting is wrong or not supported."""
    path = folder / CONFIG_FILE
    raw = _read_json(path)
    _check_supported(raw, path)
    return Settings(
        rank=_number(raw.get("r", 8), "r", path, whole=True),
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", path),
        rslora=raw.get("use_rslora", False),
        rank_pattern={
            key: _number(value, f"rank_pattern.{key}", path, whole=True)
            for key, value in _patterns(raw, "rank_pattern", path).items()
        },
        alpha_pattern={
            key: _number(value, f"alpha_pattern.{key}", path)
            for key, value in _patterns(raw, "alpha_pattern", path).items()
        },
        dora=raw.get("use_dora", False),
        saved=tuple(str(name) for name in raw.get("modules_to_save") or ()),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} is larger than {_MOST_BYTES} bytes: this is no adapter's configuration.")
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} should hold an object, not {type(raw).__name__}.")
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {raw.get('peft_type')!r}; only 'LORA' adapters are served.")
    return raw


def _check_supported(raw: Mapping[str, Any], path: Path) -> None:
    for name, reason in _UNSUPPORTED.items():
        if raw.get(name):
            raise CheckpointError(f"{path}: {name} is set; {reason}.")
    for name, kinds in _TYPES.items():
        if name in raw and not isinstance(raw[name], kinds):
            raise CheckpointError(f"{path}: {name} is {raw[name]!r}, which is not a {kinds[0].__name__}.")
    if raw.get("bias", "none") != "none":
        raise CheckpointError(
            f"{path}: bias is {raw['bias']!r}: the base model's own biases were trained. Only 'none' is supported; "
            f"merge the adapter into the base model."
        )
    start = raw.get("init_lora_weights", True)
    name = str(start).lower()
    for prefix, reason in _ALTERED_BASE.items():
        if name.startswith(prefix):
            raise CheckpointError(f"{path}: init_lora_weights is {start!r}. {reason}.")
    if not isinstance(start, bool) and start is not None and name not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r}, which is not known here: it may change the base model."
        )


def _patterns(raw: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = raw.get(name) or {}
    for pattern in found:
        try:
            if len(pattern) > _MOST_PATTERN:
                raise re.error(f"longer than {_MOST_PATTERN} characters")
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise CheckpointError(f"{path}: {name} has the key {pattern[:80]!r}, no pattern: {error}.") from error
    return found


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a whole tail of the module path, as PEFT takes it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _number(value: Any, name: str, path: Path, whole: bool = False) -> Any:
    valid = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not valid or not math.isfinite(value) or (whole and value < 1):
        raise CheckpointError(
            f"{path}: {name} is {value!r}; it must be a {'positive whole' if whole else ''} number."
        )
    return value
