"""Embeddings against Transformers' hidden states: chunks, company, prefixes, preemption, adapters' names."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
import transformers

from octavo import LLM, AsyncEngine, SamplingParams
from octavo.engine.embedding import checkpoint_pooling
from octavo.errors import NotFoundError, RequestError
from octavo.loading.profile import read_profile
from octavo.testing.tiny import tiny_llama

LENGTHS = (1, 5, 40, 100, 17, 16, 33)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("embedding") / "tiny")


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(0)
    return [random.integers(3, 300, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def states(folder, prompts):
    """The oracle: float64 hidden states behind the last norm."""
    model = transformers.AutoModel.from_pretrained(folder).double()
    with torch.no_grad():
        return [model(torch.tensor([prompt])).last_hidden_state[0].numpy() for prompt in prompts]


def pooled(states, pooling):
    return [one[-1] if pooling == "last" else one.mean(0) for one in states]


@pytest.fixture(scope="module")
def llm(folder):
    """Small steps, so that prompts are cut into chunks."""
    sizes = {"scheduler": {"max_batch_tokens": 48, "max_sequences": 8}, "cache": {"blocks": 64}}
    with LLM(model={"path": str(folder), "threads": 1}, **sizes) as llm:
        yield llm


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_agrees_with_transformers(llm, prompts, states, pooling):
    for _ in range(2):  # the second time with a warm prefix cache
        found = llm.embed(prompts, pooling=pooling, normalize=False)
        for one, want, prompt in zip(found, pooled(states, pooling), prompts, strict=True):
            np.testing.assert_allclose(one.values, want, rtol=2e-4, atol=2e-4)
            assert one.prompt_tokens == len(prompt)
    cached = [one.cached_tokens for one in found]
    assert cached == ([0, 0, 32, 96, 16, 0, 32] if pooling == "last" else [0] * len(prompts))


def test_normalised_and_cut(llm, prompts, states):
    want = pooled(states, "last")[2][:10]
    found = llm.embed([prompts[2]], dimensions=10)[0].values
    np.testing.assert_allclose(found, want / np.linalg.norm(want), rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32


def test_beside_rows_that_generate(folder, prompts, states):
    """Neither disturbs the other, also when the cache is so small that some are preempted."""

    async def both(engine):
        params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)

        async def answer(prompt):
            return [token async for delta in engine.generate(prompt, params) for token in delta.token_ids]

        work = []
        for prompt in prompts:
            work += [answer(prompt), engine.embed(prompt, pooling="mean", normalize=False), engine.embed(prompt)]
        return await asyncio.gather(*work)

    async def run(blocks):
        async with AsyncEngine(
            model={"path": str(folder), "threads": 1, "max_length": 160},
            inline=True,
            scheduler={"max_batch_tokens": 32, "max_sequences": 16},
            cache={"blocks": blocks},
        ) as engine:
            found = await both(engine)
            await asyncio.sleep(0.6)  # idle: the engine checks its books
            stats = engine.stats()
            assert stats.used_blocks == stats.running == stats.waiting == 0
            return found, stats.preemptions

    (small, preempted), (large, undisturbed) = asyncio.run(run(14)), asyncio.run(run(400))
    assert preempted > undisturbed == 0
    assert small[0::3] == large[0::3]
    for found in (small, large):
        for one, want in zip(found[1::3], pooled(states, "mean"), strict=True):
            np.testing.assert_allclose(one.values, want, rtol=2e-4, atol=2e-4)


def test_refusals(llm):
    for options, param in (
        ({"pooling": "men"}, "pooling"),
        ({"dimensions": 65}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
    ):
        with pytest.raises(RequestError) as caught:
            llm.embed("x", **options)
        assert caught.value.param == param
    with pytest.raises(NotFoundError):
        llm.embed("x", adapter="nobody")
    with pytest.raises(RequestError):
        llm.embed([[]])


def test_what_is_not_finite_is_an_error(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tiny_llama(tmp_path / "broken", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with LLM(model={"path": str(broken), "threads": 1}, cache={"blocks": 32}) as llm:
        with pytest.raises(RequestError, match="finite"):
            llm.embed([[5, 7, 9]])
        assert np.isfinite(llm.embed([[5, 6, 9]])[0].values).all()


def test_the_checkpoints_own_pooling(folder, tmp_path, caplog):
    own = tiny_llama(tmp_path / "own")
    assert checkpoint_pooling(read_profile(str(own))) == "last"
    file = own / "1_Pooling" / "config.json"
    file.parent.mkdir()
    for text, want, warned in (
        ({"pooling_mode_mean_tokens": True}, "mean", False),
        ({"pooling_mode_lasttoken": True}, "last", False),
        ({"pooling_mode_cls_token": True}, "last", True),
    ):
        caplog.clear()
        file.write_text(json.dumps(text))
        assert checkpoint_pooling(read_profile(str(own))) == want
        assert bool(caplog.records) is warned
