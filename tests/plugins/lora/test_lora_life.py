"""Adapters come, change, fail and go while an engine runs."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import AsyncEngine, SamplingParams, hookimpl
from octavo.config.compose import load_launch
from octavo.contracts.api import Arrival
from octavo.errors import CheckpointError, ConfigError, NotFoundError, RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPT = list(range(20, 60))
WEIGHTS = "adapter_model.safetensors"


def answer(llm: Any, name: str | None, prompt: list[int] = PROMPT) -> list[int]:
    found: list[int] = llm.generate(prompt, GREEDY, adapter=name)[0].outputs[0].token_ids
    return found


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def change_tensor(folder: Path, ending: str, change: Any) -> None:
    """Replace the first tensor whose name ends so; ``None`` takes it out."""
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed.contiguous()
    save_file(tensors, folder / WEIGHTS)


def rename_tensor(folder: Path, old: str, new: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name.replace(old, new): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


def add_tensor(folder: Path, name: str, *shape: int) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, f"base_model.model.{name}": torch.ones(shape)}, folder / WEIGHTS)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) * 2 // 3])


def spoil(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0, 1] = float("nan")
    return tensor


BAD: dict[str, tuple[Any, str]] = {
    "not finite": (lambda f: change_tensor(f, "0.self_attn.q_proj.lora_B.weight", spoil), r"q_proj\.lora_B.*NaN"),
    "another rank": (
        lambda f: change_config(f, r=7),
        r"lora_A\.weight' has the shape \[4, 64\].*rank 7.*\[7, 64\]",
    ),
    "another shape": (
        lambda f: change_tensor(f, "q_proj.lora_A.weight", lambda t: t[:, :-1]),
        r"q_proj\.lora_A\.weight' has the shape \[4, 63\]",
    ),
    "too large a rank": (lambda f: change_config(f, r=99), r"has rank 99; at most 16.*max_rank"),
    "half a pair": (
        lambda f: change_tensor(f, "0.self_attn.q_proj.lora_B.weight", lambda t: None),
        "lora_B.weight is missing",
    ),
    "another model": (
        lambda f: rename_tensor(f, "q_proj", "query"),
        r"adapts 'model\.layers\.0\.self_attn\.query'",
    ),
    "a deeper model": (lambda f: rename_tensor(f, "layers.1", "layers.7"), "no such linear layer"),
    "the head's shape": (
        lambda f: rename_tensor(f, "model.layers.0.self_attn.q_proj", "lm_head"),
        r"lm_head\.lora_B\.weight' has the shape \[64, 4\].*\[300, 4\]",
    ),
    "a linear layer's names for an embedding": (
        lambda f: rename_tensor(f, "model.layers.0.self_attn.q_proj", "model.embed_tokens"),
        r"'model\.embed_tokens' is an embedding",
    ),
    "an embedding's names for a linear layer": (
        lambda f: rename_tensor(f, "q_proj.lora_A.weight", "q_proj.lora_embedding_A"),
        r"q_proj' is no embedding",
    ),
    "integers": (lambda f: change_tensor(f, "q_proj.lora_A.weight", lambda t: t.to(torch.int32)), "stored as I32"),
    "truncated": (truncate, r"adapter_model\.safetensors can't be read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "a pickle": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "pickle"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "can't be read"),
    "another method": (lambda f: change_config(f, peft_type="IA3"), "only 'LORA'"),
    "DoRA": (lambda f: change_config(f, use_dora=True), "lora_magnitude_vector is missing, and use_dora is set"),
    "a DoRA tensor": (lambda f: rename_tensor(f, "lora_B.weight", "lora_magnitude_vector"), "a DoRA magnitude"),
    "PiSSA": (lambda f: change_config(f, init_lora_weights="pissa_niter_4"), "PiSSA.*path_initial_model"),
    "OLoRA": (lambda f: change_config(f, init_lora_weights="olora"), "OLoRA.*path_initial_model"),
    "LoftQ": (lambda f: change_config(f, init_lora_weights="loftq"), "LoftQ"),
    "trained biases": (lambda f: change_config(f, bias="all"), "bias is 'all'"),
    "no saved module": (lambda f: change_config(f, modules_to_save=["lm_head"]), "no weight of 'lm_head'"),
    "a saved norm": (lambda f: add_tensor(f, "model.norm.weight", 64), r"whole weight of 'model\.norm'; only"),
    "a saved projection": (
        lambda f: add_tensor(f, "model.layers.0.self_attn.q_proj.weight", 64, 64),
        r"whole weight of 'model\.layers\.0\.self_attn\.q_proj'; only",
    ),
    "more tokens": (
        lambda f: add_tensor(f, "model.embed_tokens.weight", 303, 64),
        r"embed_tokens\.weight' has the shape \[303, 64\]; with this base model it must be \[300, 64\]",
    ),
    "a wrong kind of list": (lambda f: change_config(f, modules_to_save="lm_head"), "modules_to_save is 'lm_head'"),
    "tied weights": (lambda f: change_config(f, ensure_weight_tying=True), "ensure_weight_tying is set"),
    "CorDA": (lambda f: change_config(f, init_lora_weights="corda"), "CorDA.*path_initial_model"),
    "a bad pattern": (lambda f: change_config(f, rank_pattern={"(": 3}), "no pattern"),
    "no rank": (lambda f: change_config(f, r=0), "r is 0"),
}


@pytest.fixture
def served(adapters, make_llm) -> Any:
    return make_llm({"good": adapters["plain"]})


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused_and_disturb_nobody(name, served, adapters, oracle, tmp_path):
    spoil_it, message = BAD[name]
    folder = copied(adapters["plain"], tmp_path / "bad")
    spoil_it(folder)
    with pytest.raises(RequestError, match=message) as caught:
        served.load_adapter("bad", folder)
    assert (caught.value.status, caught.value.code) == (400, "invalid_adapter")
    assert [adapter.name for adapter in served.adapters()] == ["good"]
    assert answer(served, "good") == oracle.answer(adapters["plain"], PROMPT, 12)
    # Nor does a failed reload take away what was served before.
    with pytest.raises(RequestError):
        served.load_adapter("good", folder)
    assert answer(served, "good") == oracle.answer(adapters["plain"], PROMPT, 12)


def test_names_and_paths(served, adapters, tmp_path):
    with pytest.raises(NotFoundError, match="no adapter at"):
        served.load_adapter("other", tmp_path)
    for name in ("", "x" * 257, "a\nb", 5, "base"):
        with pytest.raises(RequestError, match="name"):
            served.load_adapter(name, adapters["plain"])
    with pytest.raises(NotFoundError, match="Did you mean 'good'"):
        served.unload_adapter("goood")
    with pytest.raises(NotFoundError, match="Did you mean 'good'"):
        answer(served, "goood")
    with pytest.raises(RequestError, match="1 prompts and 2 adapters"):
        served.generate("x", GREEDY, adapter=["good", None])


def test_start_needs_good_adapters(make_llm, adapters, tmp_path):
    with pytest.raises(ConfigError, match=r"lora\.adapters\.0: there is no adapter at"):
        make_llm({"none": tmp_path})
    folder = copied(adapters["plain"], tmp_path / "bad")
    truncate(folder)
    with pytest.raises(CheckpointError, match="truncated"):
        make_llm({"bad": folder})
    with pytest.raises(ConfigError, match=r"lora\.adapters\.1\.name: 'a' is listed twice"):
        load_launch({"lora": {"adapters": [{"name": "a", "path": str(folder)}] * 2}})


def test_a_reload_in_place_never_reads_old_blocks(make_llm, adapters, oracle, tmp_path):
    folder = copied(adapters["plain"], tmp_path / "live")
    llm = make_llm({"live": folder})
    first = llm.adapters()[0]
    assert answer(llm, "live") == oracle.answer(adapters["plain"], PROMPT, 12)
    assert llm.load_adapter("live", folder) == first  # nothing changed: cached blocks stay good
    assert llm.generate(PROMPT, GREEDY, adapter="live")[0].num_cached_tokens == 32
    for kind in ("rslora", "bias", "plain"):
        copied(adapters[kind], folder)
        second = llm.load_adapter("live", folder)
        assert (second.digest == first.digest) == (kind == "plain")
        output = llm.generate(PROMPT, GREEDY, adapter="live")[0]
        assert output.outputs[0].token_ids == oracle.answer(adapters[kind], PROMPT, 12)
        assert output.num_cached_tokens == (32 if kind == "plain" else 0)


def test_settings_are_part_of_the_digest(make_llm, adapters, tmp_path):
    folder = copied(adapters["plain"], tmp_path / "live")
    llm = make_llm({"live": folder})
    before, old = answer(llm, "live"), llm.adapters()[0].digest
    change_config(folder, lora_alpha=90)
    assert llm.load_adapter("live", folder).digest != old
    assert answer(llm, "live") != before


def test_unloading(served, adapters, oracle):
    answer(served, "good")
    served.unload_adapter("good")
    assert served.adapters() == []
    with pytest.raises(NotFoundError, match="no adapter 'good'"):
        answer(served, "good")
    assert answer(served, None) == oracle.answer(None, PROMPT, 12)
    served.load_adapter("good", adapters["rslora"])
    assert answer(served, "good") == oracle.answer(adapters["rslora"], PROMPT, 12)


def test_pinned_adapters_leave_one_slot_open(make_llm, adapters, oracle):
    llm = make_llm(slots=2)
    assert llm.load_adapter("a", adapters["plain"], pinned=True).pinned
    with pytest.raises(RequestError, match="can't be pinned: of 2 adapter slots"):
        llm.load_adapter("b", adapters["bias"], pinned=True)
    for kind in ("bias", "rslora", "patterns"):
        llm.load_adapter(kind, adapters[kind])
        assert answer(llm, kind) == oracle.answer(adapters[kind], PROMPT, 12)
    assert answer(llm, "a") == oracle.answer(adapters["plain"], PROMPT, 12)
    llm.load_adapter("a", adapters["rslora"], pinned=True)  # in place of its old self
    assert answer(llm, "a") == oracle.answer(adapters["rslora"], PROMPT, 12)


def test_two_hundred_adapters_and_four_slots(make_llm, adapters, oracle, tmp_path):
    """Random traffic, loading and unloading: exact answers, and nothing is left behind."""
    rng = random.Random(11)
    llm, current = make_llm(slots=4), {}
    kinds = ["plain", "rslora", "patterns", "bias", "one layer only"]

    def load(name: str) -> None:
        current[name] = rng.choice(kinds)
        llm.load_adapter(name, adapters[current[name]])

    for index in range(200):
        load(f"adapter-{index}")
    asked = [[rng.randrange(3, 300) for _ in range(rng.choice([3, 20]))] for _ in range(6)]
    expected = {
        (kind, at): oracle.answer(adapters[kind] if kind else None, prompt, 8)
        for kind in (*kinds, None)
        for at, prompt in enumerate(asked)
    }
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    core = llm._core
    for _ in range(12):
        names = [rng.choice([*current, None, None]) for _ in range(40)]
        picks = [rng.randrange(len(asked)) for _ in names]
        outputs = llm.generate([asked[at] for at in picks], params, adapter=names)
        assert [output.outputs[0].token_ids for output in outputs] == [
            expected[current.get(name), at] for name, at in zip(names, picks, strict=True)
        ]
        core._scheduler.check()
        for name in rng.sample(sorted(current), 5):
            if rng.random() < 0.5:
                load(name)
            else:
                llm.unload_adapter(name)
                del current[name]
    for name in list(current):
        llm.unload_adapter(name)
    core._scheduler.check()
    slots = core._scheduler._ledger.adapters
    assert (len(slots), len(core._executor._adapters), llm.stats().used_blocks) == (0, 0, 0)


@pytest.fixture
def sections(adapters) -> dict[str, Any]:
    lora = {
        "use": "torch",
        "options": {"max_loaded": 2, "max_rank": 16},
        "adapters": [{"name": "a", "path": str(adapters["plain"])}],
    }
    return {"lora": lora, "cache": {"blocks": 200}}


async def collect(engine: AsyncEngine, name: str | None, count: int = 12) -> list[int]:
    found: list[int] = []
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    async for delta in engine.generate(PROMPT, params, adapter=name):
        found += delta.token_ids
    return found


def test_life_in_a_process_of_its_own(base, adapters, oracle, sections, tmp_path):
    async def scenario() -> None:
        async with AsyncEngine(str(base), **sections) as engine:
            assert [(model.id, model.parent) for model in engine.models()] == [("base", None), ("a", "base")]
            await engine.load_adapter("b", adapters["rslora"])
            assert engine.models()[2].root == str(adapters["rslora"])
            found = await asyncio.gather(*(collect(engine, name) for name in ("a", "b", None)))
            assert found == [
                oracle.answer(path, PROMPT, 12) for path in (adapters["plain"], adapters["rslora"], None)
            ]
            with pytest.raises(NotFoundError):
                await engine.load_adapter("c", tmp_path)
            await engine.unload_adapter("a")
            assert [model.id for model in engine.models()] == ["base", "b"]
            with pytest.raises(NotFoundError):
                await collect(engine, "a")

    asyncio.run(scenario())


def test_unloading_waits_for_running_requests_and_reloading_does_not(base, adapters, oracle, sections):
    async def scenario() -> None:
        async with AsyncEngine(str(base), inline=True, **sections) as engine:
            params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
            stream = engine.generate(PROMPT, params, adapter="a")
            first = await anext(stream)
            await engine.load_adapter("a", adapters["rslora"])
            assert await collect(engine, "a") == oracle.answer(adapters["rslora"], PROMPT, 12)
            other = engine.generate(PROMPT, params, adapter="a")
            begun = await anext(other)
            await engine.unload_adapter("a")
            rest = [token async for delta in stream for token in delta.token_ids]
            assert first.token_ids + rest == oracle.answer(adapters["plain"], PROMPT, 60)
            rest = [token async for delta in other for token in delta.token_ids]
            assert begun.token_ids + rest == oracle.answer(adapters["rslora"], PROMPT, 60)

    asyncio.run(scenario())


class Tenants:
    """Chooses by a header."""

    @hookimpl
    def octavo_select_adapter(self, arrival: Any, adapters: Any) -> str | None:
        tenant = arrival.headers.get("x-tenant")
        return f"tenant-{tenant}" if f"tenant-{tenant}" in adapters else None


def test_a_plugin_chooses_by_a_header(base, adapters, oracle, sections):
    async def scenario() -> None:
        async with AsyncEngine(str(base), inline=True, plugins=[Tenants()], **sections) as engine:
            await engine.load_adapter("tenant-7", adapters["bias"])
            for tenant, path in (("7", adapters["bias"]), ("8", None)):
                found: list[int] = []
                arrival = Arrival(None, len(PROMPT), {"x-tenant": tenant})
                async for delta in engine.generate(PROMPT, GREEDY, arrival=arrival):
                    found += delta.token_ids
                assert found == oracle.answer(path, PROMPT, 12)

    asyncio.run(scenario())
