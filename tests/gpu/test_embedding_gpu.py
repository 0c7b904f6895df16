"""Embeddings on a GPU: overlapped steps, chunks, and rows that generate beside them, against Transformers."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from octavo import AsyncEngine, SamplingParams
from octavo.testing.tiny import tiny_llama

pytestmark = pytest.mark.gpu


def test_agrees_with_transformers_beside_answers(tmp_path: Path) -> None:
    import torch
    import transformers

    folder = tiny_llama(tmp_path / "m", hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512, layers=3)
    rng = random.Random(5)
    prompts = [[rng.randrange(3, 320) for _ in range(n)] for n in (1, 15, 16, 33, 200, 130)]
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in prompts]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)

    async def answer(engine: AsyncEngine, ids: list[int]) -> list[int]:
        return [token async for delta in engine.generate(ids, params) for token in delta.token_ids]

    async def scenario() -> None:
        engine = AsyncEngine(
            model={"path": str(folder), "dtype": "float32"}, inline=True, scheduler={"max_batch_tokens": 48}
        )
        async with engine:
            alone = [await answer(engine, ids) for ids in prompts]
            for pooling in ("last", "mean"):
                vectors = [engine.embed(ids, pooling=pooling, normalize=False) for ids in prompts]
                answers = [answer(engine, ids) for ids in prompts]
                found = await asyncio.gather(*vectors, *answers)
                assert found[len(prompts) :] == alone
                for one, whole in zip(found, states, strict=False):
                    want = whole[-1] if pooling == "last" else whole.mean(0)
                    np.testing.assert_allclose(one.values, want, rtol=5e-3, atol=5e-3)

    asyncio.run(scenario())
