"""A real engine with adapters behind the OpenAI surface."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
from transformers import LlamaForCausalLM

from octavo import AsyncEngine
from octavo.cli.listen import build_app
from octavo.testing.tiny import tiny_llama
from octavo_api.openai import build
from octavo_api.options import OpenAIOptions

PROMPT = list(range(20, 45))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and a PEFT adapter for it."""
    root = tmp_path_factory.mktemp("http")
    base = tiny_llama(root / "base", max_length=128)
    torch.manual_seed(2)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(root / "sql")
    return base, root / "sql"


def oracle(base: Path, adapter: Path | None) -> list[int]:
    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    out = model.eval().generate(
        input_ids=torch.tensor([PROMPT]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    found: list[int] = out[0, len(PROMPT) :].tolist()
    return found


def hidden(base: Path, adapter: Path) -> list[float]:
    """The mean over the last layer's hidden states."""
    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([PROMPT]), output_hidden_states=True).hidden_states[-1][0]
    found: list[float] = states.mean(0).tolist()
    return found


def test_adapters_are_models_of_the_surface(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    lora = {"use": "torch", "adapters": [{"name": "sql", "path": str(adapter)}]}

    async def scenario() -> None:
        async with AsyncEngine(str(base), inline=True, lora=lora, cache={"blocks": 100}) as engine:
            app = build_app([("openai", build(engine, OpenAIOptions(admin_key="boss")))])
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                listed = (await http.get("/v1/models")).json()["data"]
                assert [(entry["id"], entry["parent"]) for entry in listed] == [("base", None), ("sql", "base")]
                assert listed[1]["root"] == str(adapter)
                body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 10, "ignore_eos": True}
                for name, path in (("sql", adapter), ("base", None)):
                    answer = (await http.post("/v1/completions", json={**body, "model": name})).json()
                    assert answer["model"] == name
                    expected = await engine.decode(oracle(base, path), skip_special_tokens=True)
                    assert answer["choices"][0]["text"] == expected
                refused = await http.post("/v1/completions", json={**body, "model": "sqll"})
                assert refused.status_code == 404
                assert "Did you mean 'sql'" in refused.json()["error"]["message"]
                key = {"authorization": "Bearer boss"}
                named = {"lora_name": "sql"}
                assert (await http.post("/v1/unload_lora_adapter", json=named, headers=key)).status_code == 200
                gone = await http.post("/v1/completions", json={**body, "model": "sql"})
                assert gone.status_code == 404
                wrong = {"lora_name": "sql", "lora_path": str(base)}
                answer = await http.post("/v1/load_lora_adapter", json=wrong, headers=key)
                assert (answer.status_code, answer.json()["error"]["param"]) in ((400, "path"), (404, "path"))
                loaded = {"lora_name": "fresh", "lora_path": str(adapter)}
                answer = (await http.post("/v1/load_lora_adapter", json=loaded, headers=key)).json()
                assert (answer["name"], answer["rank"]) == ("fresh", 4)
                asked = {"input": PROMPT, "model": "fresh", "pooling": "mean", "normalize": False}
                vector = (await http.post("/v1/embeddings", json=asked)).json()["data"][0]["embedding"]
                assert vector == pytest.approx(hidden(base, adapter), abs=1e-3)
                plain = (await http.post("/v1/embeddings", json={**asked, "model": "base"})).json()
                assert plain["data"][0]["embedding"] != pytest.approx(vector, abs=1e-2)

    asyncio.run(scenario())
