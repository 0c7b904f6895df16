"""Adapters that were put out of host memory, and those that nobody has loaded yet."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo import LLM, AsyncEngine, SamplingParams
from octavo.cli.listen import build_app
from octavo.errors import ConfigError, NotFoundError, RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPT = list(range(20, 44))


def answer(llm: LLM, name: str | None) -> Any:
    return llm.generate(PROMPT, GREEDY, adapter=name)[0].outputs[0]


@pytest.fixture
def small(adapters: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """Three adapters, copies of their own, one slot, and host memory for one of them."""
    kinds = ("plain", "rslora", "head")
    for kind in kinds:
        shutil.copytree(adapters[kind], tmp_path / kind)
    lora = {
        "use": "torch",
        "options": {"max_loaded": 1, "max_rank": 16},
        "host_memory_gib": 1e-9,
        "adapters": [{"name": kind, "path": str(tmp_path / kind)} for kind in kinds],
    }
    return {"lora": lora, "cache": {"blocks": 200}}


def test_adapters_are_read_again_when_they_are_asked_for(
    base: Path, small: Any, adapters: Any, oracle: Any
) -> None:
    names = ["plain", "rslora", None, "head"] * 3
    with LLM(str(base), **small) as llm:
        outputs = llm.generate([PROMPT] * len(names), GREEDY, adapter=names)
        expected = {name: oracle.answer(adapters[name] if name else None, PROMPT, 8) for name in names[:4]}
        assert [output.outputs[0].token_ids for output in outputs] == [expected[name] for name in names]
        assert len(llm._core._executor._adapters) == 1
        llm._core._scheduler.check()


def test_a_file_that_was_changed_or_is_gone_fails_its_requests_only(
    base: Path, small: Any, adapters: Any, oracle: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with AsyncEngine(str(base), inline=True, **small) as engine:

            async def ask(name: str | None) -> list[int]:
                deltas = engine.generate(PROMPT, GREEDY, adapter=name)
                return [token async for delta in deltas for token in delta.token_ids]

            await ask("head")
            shutil.copytree(adapters["bias"], tmp_path / "plain", dirs_exist_ok=True)
            shutil.rmtree(tmp_path / "rslora")
            found = await asyncio.gather(*map(ask, ("plain", "rslora", "head", None)), return_exceptions=True)
            assert [getattr(one, "status", None) for one in found] == [500, 500, None, None]
            assert "was changed; it must be loaded anew" in str(found[0])
            assert "could not be read again: there is no adapter at" in str(found[1])
            assert found[2:] == [oracle.answer(adapters["head"], PROMPT, 8), oracle.answer(None, PROMPT, 8)]
            await engine.load_adapter("plain", tmp_path / "plain")
            assert await ask("plain") == oracle.answer(adapters["bias"], PROMPT, 8)

    asyncio.run(scenario())


@pytest.fixture
def shelf(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A folder for a resolver, with good adapters, a bad one, and things that must not be followed."""
    folder = tmp_path / "shelf"
    for name, kind in (("team-1", "plain"), ("team.2", "rslora")):
        shutil.copytree(adapters[kind], folder / name)
    shutil.copytree(adapters["plain"], folder / "bad")
    (folder / "bad" / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    shutil.copytree(adapters["plain"], tmp_path / "secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    shutil.copytree(adapters["plain"], folder / "inside")
    (folder / "inside" / "adapter_model.safetensors").unlink()
    (folder / "inside" / "adapter_model.safetensors").symlink_to(tmp_path / "secret" / "adapter_model.safetensors")
    (folder / "empty").mkdir()
    return folder


FORBIDDEN = (
    "link",
    "inside",
    "empty",
    "../secret",
    "..",
    ".",
    "",
    "team-1/",
    "/etc",
    "team-1\0",
    "team-3",
    "a" * 200,
)


def test_a_resolver_loads_what_is_asked_for(base: Path, shelf: Path, adapters: Any, oracle: Any) -> None:
    lora = {"use": "torch", "resolver": {"folder": str(shelf)}}
    with LLM(str(base), lora=lora, cache={"blocks": 200}) as llm:
        outputs = llm.generate([PROMPT] * 3, GREEDY, adapter=["team-1", "team.2", "team-1"])
        expected = [oracle.answer(adapters[kind], PROMPT, 8) for kind in ("plain", "rslora", "plain")]
        assert [output.outputs[0].token_ids for output in outputs] == expected
        assert [adapter.name for adapter in llm.adapters()] == ["team-1", "team.2"]
        for name in FORBIDDEN:
            with pytest.raises(NotFoundError):
                answer(llm, name)
        with pytest.raises(RequestError, match="can't be read"):
            answer(llm, "bad")
        assert answer(llm, "team-1").token_ids == expected[0]


def test_a_resolver_needs_a_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.resolver\.folder.*is no folder"):
        LLM(str(base), lora={"use": "torch", "resolver": {"folder": str(tmp_path / "none")}})


def test_a_resolver_behind_the_openai_surface(base: Path, shelf: Path, adapters: Any, oracle: Any) -> None:
    from octavo_api.openai import build
    from octavo_api.options import OpenAIOptions

    lora = {"use": "torch", "resolver": {"folder": str(shelf)}}

    async def scenario() -> None:
        async with AsyncEngine(str(base), inline=True, lora=lora, cache={"blocks": 200}) as engine:
            transport = httpx.ASGITransport(app=build_app([("openai", build(engine, OpenAIOptions()))]))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

                async def ask(name: str) -> httpx.Response:
                    body = {"model": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
                    return await http.post("/v1/completions", json=body)

                assert (await http.get("/v1/models/team-1")).status_code == 404  # not there yet
                answers = await asyncio.gather(*(ask("team-1") for _ in range(5)))
                text = await engine.decode(oracle.answer(adapters["plain"], PROMPT, 8), skip_special_tokens=True)
                assert [one.json()["choices"][0]["text"] for one in answers] == [text] * 5
                assert (await http.get("/v1/models/team-1")).json()["parent"] == "base"
                refused = [await ask(name) for name in ("bad", "../secret", "link", "team-3")]
                assert [one.status_code for one in refused] == [400, 404, 404, 404]
                assert "adapter_model.safetensors" in refused[0].json()["error"]["message"]

    asyncio.run(scenario())
