"""SqueezeLLM's tables and sparse parts, whole and divided among ranks, against float64."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo.contracts.model import filled
from octavo.errors import CheckpointError
from octavo.loading.profile import read_profile
from octavo.model.linear import Linear, Part
from octavo.model.parallel import Ranks
from octavo.model.parts import Parts
from octavo.records import Context, DeviceProfile
from octavo.testing.tiny import tiny_llama
from octavo_quant.integer.squeezellm import squeezellm_scheme

pack_rows = runpy.run_path(str(Path(__file__).with_name("integer_writers.py")))["pack_rows"]


def write(
    name: str, rows: int, width: int, bits: int, sparse: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of one layer, and its weight in float64."""
    generator = torch.Generator().manual_seed(rows + bits)
    codes = torch.randint(0, 2**bits, (rows, width), generator=generator)
    table = torch.randn(rows, 2**bits, generator=generator)
    tensors = {f"{name}.qweight": pack_rows(codes.T.numpy(), bits), f"{name}.lookup_table": table}
    weight = table.double().gather(1, codes)
    if sparse:
        few = torch.randn(rows, width, generator=generator) * (torch.rand(rows, width, generator=generator) < 0.05)
        places = few.nonzero()
        starts = torch.tensor([int((places[:, 0] < row).sum()) for row in range(rows + 1)], dtype=torch.int32)
        tensors |= {f"{name}.rows": starts, f"{name}.cols": places[:, 1].int(), f"{name}.vals": few[few != 0]}
        full = torch.randn(width, 2, generator=generator)
        tensors |= {f"{name}.full_rows": full, f"{name}.full_row_indices": torch.tensor([5, 0], dtype=torch.int32)}
        tensors[f"{name}.startrows"] = torch.zeros(8, dtype=torch.int32)
        weight = weight + few.double()
        weight[[5, 0]] += full.double().T
    return tensors, weight


def context(folder: Path, tensors: dict[str, torch.Tensor], bits: int) -> Context:
    tiny_llama(folder)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "squeezellm", "bits": bits}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    device = DeviceProfile(type="cpu", index=0, name="cpu", capability=None, total_memory=0, free_memory=0, cores=1)
    return Context(
        model=read_profile(str(folder)),
        device=device,
        dtype="float32",
        kv_dtype="float32",
        block_size=16,
        max_length=16,
        max_sequences=1,
        max_batch_tokens=16,
    )


def build(ctx: Context, tensors: dict[str, torch.Tensor], parts: list[Part], width: int, division: str) -> Linear:
    shared = Parts(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=None,
        scheme=squeezellm_scheme(ctx),
        ranks=Ranks(ctx.rank, ctx.tensor_parallel),
    )
    linear = Linear(shared, parts, width, bias=False, division=division)
    for slot in linear.slots():
        with filled(slot):
            slot.target.copy_(tensors[slot.source][slot.shard])
    linear.finalize()
    return linear


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_layers(tmp_path: Path, bits: int, sparse: bool, ranks: int) -> None:
    made = {
        name: write(name, rows, 64, bits, sparse) for name, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 24))
    }
    tensors = {name: tensor for layer, _ in made.values() for name, tensor in layer.items()}
    ctx = context(tmp_path, tensors, bits)
    x = torch.randn(3, 64)
    summed = torch.zeros(3, 24, dtype=torch.float64)
    for rank in range(ranks):
        mine = replace(ctx, rank=rank, tensor_parallel=ranks)
        qkv = build(mine, tensors, [Part("q", 32), Part("k", 16), Part("v", 16)], 64, "column")
        shares = [made[name][1].chunk(ranks)[rank] for name in "qkv"]
        found = qkv.method.apply(qkv.weights, x, None).double()
        torch.testing.assert_close(found, x.double() @ torch.cat(shares).T, rtol=1e-5, atol=1e-4)
        down = build(mine, tensors, [Part("o", 24)], 64, "row")
        summed += down.method.apply(down.weights, x.chunk(ranks, 1)[rank], None).double()
    torch.testing.assert_close(summed, x.double() @ made["o"][1].T, rtol=1e-5, atol=1e-4)


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    tensors, _ = write("o", 24, 64, 4, True)
    with pytest.raises(CheckpointError, match="bits is 5; SqueezeLLM is read with 3 and 4"):
        squeezellm_scheme(context(tmp_path / "a", tensors, 5))
    without = {name: tensor for name, tensor in tensors.items() if name != "o.lookup_table"}
    ctx = context(tmp_path / "b", without, 4)
    with pytest.raises(CheckpointError, match=r"o\.lookup_table is missing; a 4-bit SqueezeLLM weight"):
        build(ctx, without, [Part("o", 24)], 64, "column")
    outside = tensors | {"o.cols": tensors["o.cols"] + 64}
    ctx = context(tmp_path / "c", outside, 4)
    with pytest.raises(CheckpointError, match=r"o\.rows does not describe a sparse matrix"):
        build(ctx, outside, [Part("o", 24)], 64, "column")
