"""The attention plugin without Triton: its record, what it refuses and why, and how it cuts prefills into tiles."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from octavo.records import AttentionRecord, Context, DeviceProfile, ModelProfile
from octavo_attention.options import TritonOptions
from octavo_attention.plan import cut, make_plan
from octavo_attention.plugin import octavo_attention_backends, supports

MODEL = ModelProfile(
    path="x",
    name="x",
    format="config",
    architecture="LlamaForCausalLM",
    config={},
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=1000,
    max_length=8192,
    dtype="bfloat16",
    tied_embeddings=False,
    eos_ids=(2,),
    quantization=None,
    generation={},
    digest="0",
)
GPU = DeviceProfile(
    type="cuda", index=0, name="GPU", capability=(9, 0), total_memory=1, free_memory=1, cores=8
)  # fmt: skip
CONTEXT = Context(
    model=MODEL,
    device=GPU,
    dtype="bfloat16",
    kv_dtype="bfloat16",
    block_size=16,
    max_length=8192,
    max_sequences=256,
    max_batch_tokens=8192,
)


def record() -> AttentionRecord:
    (found,) = octavo_attention_backends()
    return found


def test_record():
    found = record()
    assert (found.name, found.graph_safe, found.options) == ("triton", True, TritonOptions)
    assert found.rank > 0
    assert found.supports(CONTEXT) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": replace(GPU, type="cpu", capability=None, name="Zen 3")}, "NVIDIA GPUs, not on Zen 3"),
        ({"device": replace(GPU, capability=(7, 5))}, "this GPU has 7.5"),
        ({"model": replace(MODEL, head_dim=112)}, "head size 112, only for 64, 80, 96, 128, 192, 256"),
        ({"dtype": "float64", "kv_dtype": "float64"}, "not in float64"),
        ({"kv_dtype": "float16"}, "set cache.dtype"),
        ({"model": replace(MODEL, num_heads=12)}, "12 query heads for 8 key heads"),
        ({"model": replace(MODEL, num_heads=512)}, "512 query heads"),
    ],
)
def test_refusals(change, reason):
    assert reason in (supports(replace(CONTEXT, **change)) or "")


def test_options_are_strict():
    with pytest.raises(ValidationError, match="portable"):
        TritonOptions(prefill="fastest")


def test_import_is_light():
    code = "import sys, octavo_attention.plugin as p; list(p.octavo_attention_backends())"
    code += "; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cut_covers_every_token_once_longest_first():
    query_lens = np.array([1, 1, 100, 7, 64, 33], dtype=np.int32)
    seq_lens = np.array([9, 5, 100, 900, 64, 40], dtype=np.int32)
    pairs = cut(query_lens, seq_lens, 2, 32)
    covered = sorted((int(r), t) for r, first in pairs for t in range(first, min(first + 32, query_lens[r])))
    assert covered == [(r, t) for r in range(2, 6) for t in range(query_lens[r])]
    keys = [int(seq_lens[r] - query_lens[r] + first) for r, first in pairs]
    assert keys == sorted(keys, reverse=True)
    assert pairs.dtype == np.int32


@pytest.mark.parametrize(
    ("query_lens", "decodes", "expected"),
    [
        ([1, 1, 1], 3, (3, 1)),
        ([1, 1, 5], 2, (2, 1)),
        ([4, 4, 4], 0, (3, 4)),
        ([4, 4, 3], 0, (0, 1)),
        ([9, 9], 0, (0, 1)),
    ],
)
def test_plan(query_lens, decodes, expected):
    batch = SimpleNamespace(num_rows=len(query_lens), decodes=decodes, query_lens_host=np.array(query_lens))
    plan = make_plan(batch)
    assert (plan.decode_rows, plan.queries) == expected
