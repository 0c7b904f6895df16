"""A loaded model without an engine around it: one step over given token ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.attention.torch_paged import TorchAttention
from octavo.contracts.attention import StepBatch
from octavo.contracts.linear import QuantScheme
from octavo.contracts.model import CausalLM
from octavo.loading.profile import read_profile
from octavo.loading.safetensors import SafetensorsLoader
from octavo.model.llama import build_llama
from octavo.model.parallel import Ranks
from octavo.model.parts import Parts
from octavo.records import Context, DeviceProfile

BLOCK = 16


def load(folder: Path, ranks: Ranks | None = None, scheme: QuantScheme | None = None) -> CausalLM:
    profile = read_profile(str(folder))
    device = DeviceProfile(type="cpu", index=0, name="cpu", capability=None, total_memory=0, free_memory=0, cores=1)
    ctx = Context(
        model=profile,
        device=device,
        dtype="float32",
        kv_dtype="float32",
        block_size=BLOCK,
        max_length=profile.max_length,
        max_sequences=4,
        max_batch_tokens=512,
    )
    parts = Parts(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=TorchAttention(ctx),
        scheme=scheme,
        ranks=ranks or Ranks(),
    )
    model = build_llama(ctx, parts)
    with torch.inference_mode():
        SafetensorsLoader().load(model, profile, lambda done, total, name: None)
        model.finalize()
    model.backend = parts.attention  # type: ignore[attr-defined]
    return model


@torch.inference_mode()
def logits(model: CausalLM, ids: list[int]) -> Tensor:
    """Logits at every position of one prompt, float32 [len(ids), vocab]."""
    count = len(ids)
    width = -(-count // BLOCK)
    table = np.arange(1, width + 1, dtype=np.int32)[None]
    positions = np.arange(count)
    batch = StepBatch(
        num_tokens=count,
        num_rows=1,
        decodes=int(count == 1),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(positions + BLOCK),
        block_tables=torch.from_numpy(table),
        seq_lens=torch.tensor([count], dtype=torch.int32),
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        seq_lens_host=np.array([count]),
        query_lens_host=np.array([count]),
        block_tables_host=table,
    )
    backend = model.backend  # type: ignore[attr-defined]
    caches = [torch.zeros(backend.kv_shape(spec, width + 1)) for spec in model.attention_layers]
    hidden = model.forward(torch.tensor(ids), batch, backend.plan(batch), caches)
    return model.logits(hidden)


@pytest.fixture(scope="session")
def load_model() -> Callable[..., CausalLM]:
    return load


@pytest.fixture(scope="session")
def model_logits() -> Callable[[CausalLM, list[int]], Tensor]:
    return logits
