"""LoRA adapters of random weights over all linear layers of a model, to measure with."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from octavo.errors import ConfigError

WEIGHTS: Final = "adapter_model.safetensors"


def write_adapters(model: str | Path, folder: Path, count: int, rank: int) -> list[str]:
    """``count`` folders in PEFT's format for the model in the folder ``model``; returns their names.

    They share one file of weights and differ in their scale, so that no two are taken for the same. Raises
    :class:`ConfigError` where the shapes of the layers can't be told.
    """
    import torch
    from safetensors.torch import save_file

    config = _config(model)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module, outputs, inputs in _linears(config):
        down = torch.randn((rank, inputs), generator=generator) / inputs**0.5
        up = torch.randn((outputs, rank), generator=generator) * 0.02
        tensors[f"base_model.model.{module}.lora_A.weight"] = down.bfloat16()
        tensors[f"base_model.model.{module}.lora_B.weight"] = up.bfloat16()
    save_file(tensors, folder / WEIGHTS)
    names = [f"adapter-{index}" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).mkdir()
        os.link(folder / WEIGHTS, folder / name / WEIGHTS)
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank + index / count}
        (folder / name / "adapter_config.json").write_text(json.dumps(settings))
    return names


@contextlib.contextmanager
def with_adapters(
    sections: Mapping[str, Any], count: int | None, rank: int
) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """``sections`` with as many adapters, all on the device at once, and their names; files go when the context
    ends. Without a count nothing changes. Raises what :func:`write_adapters` raises."""
    if count is None:
        yield sections, []
        return
    with tempfile.TemporaryDirectory(prefix="octavo-adapters-") as name:
        folder = Path(name)
        names = write_adapters(sections.get("model", {}).get("path", ""), folder, count, rank)
        added = {
            "use": _backend(),
            "options": {"max_loaded": count, "max_rank": rank},
            "adapters": [{"name": name, "path": str(folder / name)} for name in names],
        }
        given = sections.get("lora", {})
        yield {**sections, "lora": {**added, **({"use": given} if isinstance(given, str) else given)}}, names


def _backend() -> str:
    import torch

    return "triton" if torch.cuda.is_available() else "torch"


def _config(model: str | Path) -> Mapping[str, Any]:
    path = Path(model).expanduser() / "config.json"
    try:
        config: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        _ = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--adapters needs a model folder with a config.json as Llama has one; {path}: {error!r}."
        ) from None
    return config


def _linears(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Module path, outputs and inputs of each linear layer inside a Llama or one of its relatives."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    shapes = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}", *shape
