"""Quantised checkpoints made in tests, and their logits: Octavo's and those of a float64 model.

Loaded with ``runpy``. As a program it is one rank of a gloo group:
``checkpoints.py RANK SIZE FOLDER RENDEZVOUS IDS`` prints its logits as JSON.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KIT = runpy.run_path(str(Path(__file__).parents[2] / "core/model/conftest.py"))
Quantise = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
"""A module's name and weight to tensors by suffix, and to the weight that they stand for (float64)."""
SHAPE = {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "intermediate": 384, "tied": False}


def make(
    folder: Path, quantise: Quantise, config: Mapping[str, Any], *, seed: int = 0, tied: bool = False, **shape: Any
) -> dict[str, Tensor]:
    """Write a tiny Llama whose linear layers are quantised; returns the weights it stands for, in float64."""
    from safetensors.torch import load_file, save_file

    from octavo.testing.tiny import tiny_llama

    tiny_llama(folder, seed=seed, **{**SHAPE, "tied": tied, **shape})
    stored, truth = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if "_proj" in name:  # tiny models are made to wander: rounding would be seen ten times larger
            weight = weight * (0.2 if "o_proj" in name else 0.5)
        made = quantise(module, weight) if "_proj" in name or module == "lm_head" else ({"weight": weight}, weight)
        truth[name] = made[1].double()
        stored |= {f"{module}.{suffix}": tensor.clone().contiguous() for suffix, tensor in made[0].items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": dict(config)}))
    return truth


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite a checkpoint's tensors."""
    from safetensors.torch import load_file, save_file

    tensors = dict(load_file(folder / "model.safetensors"))
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def expected(folder: Path, truth: Mapping[str, Tensor], ids: list[int]) -> Tensor:
    """Logits [tokens, vocab] of Transformers in float64 with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config)).double().eval()
    missing, unexpected = model.load_state_dict(dict(truth), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def resolved(folder: Path, **sections: Any) -> Any:
    """A decided engine for this checkpoint on a CPU."""
    from octavo.assemble import resolve
    from octavo.config.compose import load_launch

    model = {"path": str(folder), "device": "cpu", **sections.pop("model", {})}
    config, host = load_launch({"model": model, **sections})
    return resolve(config, host)


def logits(folder: Path, ids: list[int], ranks: Any = None, **sections: Any) -> Tensor:
    """Octavo's logits, float32 [tokens, vocab], as its plugins load the checkpoint."""
    from octavo.run.build import build_parts, load_model

    decided = resolved(folder, **sections)
    parts = build_parts(decided, torch.device("cpu"), ranks)
    model, _ = load_model(decided, parts, lambda done, total, name: None)
    model.backend = parts.attention  # type: ignore[attr-defined]
    found: Tensor = KIT["logits"](model, ids)
    return found


def ranked(folder: Path, ids: list[int], size: int, rendezvous: Path) -> list[Tensor]:
    """The logits that each of ``size`` processes finds."""
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(size), str(folder), str(rendezvous), json.dumps(ids)],
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0] * size
    return [torch.tensor(json.loads(output)) for output in outputs]


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, in norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def main() -> None:
    import torch.distributed as dist

    from octavo.model.parallel import Ranks

    rank, size, folder, rendezvous, ids = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    print(json.dumps(logits(Path(folder), json.loads(ids), Ranks(rank, size)).tolist()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
