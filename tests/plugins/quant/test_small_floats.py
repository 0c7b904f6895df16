"""FP4, MXFP8, bitsandbytes and torchao checkpoints, against a float64 model of the weights they stand for."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo.errors import CheckpointError, OctavoError

HERE = Path(__file__).parent
KIT = SimpleNamespace(**runpy.run_path(str(HERE / "checkpoints.py")))
WRITE = SimpleNamespace(**runpy.run_path(str(HERE / "small_writers.py")))
IDS = [1, 5, 99, 200, 7, 7, 300, 41, 12]
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", WRITE.WRITERS)
def test_logits(name: str, tmp_path: Path) -> None:
    writer = WRITE.WRITERS[name]
    truth = KIT.make(tmp_path, writer.quantise, writer.config)
    found = KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS))
    assert found < (0.06 if writer.activation_error else 2e-5)


def test_rows_of_nf4_may_begin_inside_a_block(tmp_path: Path) -> None:
    """Hidden size 96: three rows share two blocks of 64, and merged layers end anywhere."""
    writer = WRITE.WRITERS["nf4, nested"]
    truth = KIT.make(tmp_path, writer.quantise, writer.config, hidden=96, heads=3, kv_heads=1, head_dim=32)
    assert KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS)) < 2e-5


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "nf4", "nf4, nested", "torchao int8, groups"])
def test_ranks_share_a_checkpoint(name: str, tmp_path: Path) -> None:
    writer = WRITE.WRITERS[name]
    shape = {"heads": 8, "kv_heads": 4, "intermediate": 512}
    KIT.make(tmp_path, writer.quantise, writer.config, **shape)
    alone = KIT.logits(tmp_path, IDS)
    for found in KIT.ranked(tmp_path, IDS, 2, tmp_path / "meet"):
        assert KIT.error(found, alone) < 1e-5


def test_the_file_beside_config_json_that_modelopt_writes(tmp_path: Path) -> None:
    writer = WRITE.WRITERS["modelopt nvfp4"]
    truth = KIT.make(tmp_path, writer.quantise, writer.config)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    inner = config.pop("quantization_config")
    path.write_text(json.dumps(config))
    inner.pop("quant_method")
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": inner}))
    assert KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS)) < 2e-5


WRONG = {
    "global scale missing": (
        "nvfp4",
        lambda t: t.pop(f"{Q}.weight_global_scale"),
        "weight_global_scale is missing",
    ),
    "scales of other groups": (
        "mxfp4",
        lambda t: t.update({f"{Q}.weight_scale": t[f"{Q}.weight_scale"][:, :4].clone()}),
        r"weight_scale has shape \[256, 4\]; an FP4 weight in groups of 32 needs \[256, 8\]",
    ),
    "state missing": (
        "nf4",
        lambda t: t.pop(f"{Q}.weight.quant_state.bitsandbytes__nf4"),
        "q_proj.weight.quant_state.bitsandbytes__nf4 is missing",
    ),
    "state damaged": (
        "nf4",
        lambda t: t.update({f"{Q}.weight.quant_state.bitsandbytes__nf4": torch.tensor([1, 2], dtype=torch.uint8)}),
        "holds no description of a quantised weight",
    ),
    "absmax cut off": (
        "nf4",
        lambda t: t.update({f"{Q}.weight.absmax": t[f"{Q}.weight.absmax"][:9].clone()}),
        r"weight.absmax has shape \[9\]; a four-bit weight of 256 x 256 needs \[1024\]",
    ),
    "SCB missing": ("bnb int8", lambda t: t.pop(f"{Q}.SCB"), "SCB is missing; an INT8 weight"),
    "layout unknown": (
        "torchao int8",
        lambda t: t.update({f"{Q}._weight_scale": torch.ones(4, 256)}),
        "of torchao's layouts those with int8 or e4m3",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoints_are_refused_by_the_tensor_s_name(case: str, tmp_path: Path) -> None:
    name, edit, message = WRONG[case]
    writer = WRITE.WRITERS[name]
    KIT.make(tmp_path, writer.quantise, writer.config, layers=1)
    KIT.change(tmp_path, edit)
    with pytest.raises(CheckpointError, match=message):
        KIT.logits(tmp_path, IDS)


@pytest.mark.parametrize("method", ["torchao", "bitsandbytes"])
def test_pickled_checkpoints_are_refused(method: str, tmp_path: Path) -> None:
    KIT.make(tmp_path, lambda module, weight: ({"weight": weight}, weight), {"quant_method": method}, layers=1)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(OctavoError, match="pickle"):
        KIT.logits(tmp_path, IDS)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("kind", "nested"), [("nf4", False), ("nf4", True), ("fp4", True)])
def test_weights_as_bitsandbytes_itself_stores_and_reads_them(kind: str, nested: bool, tmp_path: Path) -> None:
    import bitsandbytes.functional as bnb

    def quantise(weight: torch.Tensor) -> WRITE.Made:
        packed, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
        stored = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        return {"weight": packed, **stored}, bnb.dequantize_4bit(packed, state).double()

    truth = KIT.make(tmp_path, WRITE.outside_head(quantise), WRITE.BNB)
    assert KIT.error(KIT.logits(tmp_path, IDS), KIT.expected(tmp_path, truth, IDS)) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compile_fp8", "compile_codebook"])
def test_compiled_for_hopper(name: str) -> None:
    """Kernels compile for sm_90, multiply on its tensor cores and keep everything in registers."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), "--quick"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert made
    for kernel in made:
        assert kernel["stack"] == kernel["spills"] == 0, kernel
        assert kernel["shared"] <= 113 * 1024, kernel  # two programs a processor
        assert (kernel["wgmma"] > 0) == kernel["kernel"].startswith(("matmul", "product")), kernel


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the same cases on the device")
def test_kernels_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(HERE / "codebook_cases.py"), "cpu", "float32"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
