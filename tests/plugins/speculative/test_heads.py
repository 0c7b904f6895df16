"""EAGLE-1, EAGLE-3 and Medusa heads: every draft against a plain torch implementation on whole sequences."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError
from octavo.records import ProposerRecord
from octavo.testing.tiny import tiny_llama
from octavo_speculative.eagle import EagleOptions
from octavo_speculative.eagle import octavo_proposers as eagles
from octavo_speculative.medusa import octavo_proposers as medusas

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCAB, LAYERS = 64, 4, 2, 16, 96, 320, 6
EPS, THETA = 1e-5, 10_000.0
COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("heads") / "target", layers=LAYERS, max_length=128)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def write(folder: Path, weights: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    if config:
        common = {
            "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM,
            "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": EPS, "rope_theta": THETA,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(common | config))
    return folder


def layer_weights(at: str, joined: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.5) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * gain / columns**0.5

    return {
        f"{at}self_attn.q_proj.weight": matrix(HEADS * DIM, joined, 2.0),
        f"{at}self_attn.k_proj.weight": matrix(KV_HEADS * DIM, joined, 2.0),
        f"{at}self_attn.v_proj.weight": matrix(KV_HEADS * DIM, joined),
        f"{at}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * DIM, 3.0),
        f"{at}mlp.gate_proj.weight": matrix(INNER, HIDDEN),
        f"{at}mlp.up_proj.weight": matrix(INNER, HIDDEN),
        f"{at}mlp.down_proj.weight": matrix(HIDDEN, INNER),
        f"{at}post_attention_layernorm.weight": 1 + 0.2 * torch.randn(HIDDEN, generator=generator),
    }


def eagle1(folder: Path, bias: bool) -> Path:
    generator = torch.Generator().manual_seed(1)
    weights = layer_weights("layers.0.", HIDDEN, 2)
    weights["fc.weight"] = torch.randn(HIDDEN, 2 * HIDDEN, generator=generator) / HIDDEN**0.5
    if bias:
        weights["fc.bias"] = torch.randn(HIDDEN, generator=generator)
        weights["embed_tokens.weight"] = torch.zeros(VOCAB, HIDDEN)  # the target's is meant
    return write(folder, weights, kind="eagle 1")


def eagle3(folder: Path, at: str, ids: list[int] | None, reduced: bool, before: bool) -> Path:
    generator = torch.Generator().manual_seed(3)
    weights = layer_weights(at, 2 * HIDDEN, 4)
    outer = "model." if at.startswith("model.") else ""
    size = 120 if reduced else VOCAB
    weights["fc.weight"] = torch.randn(HIDDEN, 3 * HIDDEN, generator=generator) / HIDDEN**0.5
    for name in (f"{at}input_layernorm", f"{at}hidden_norm", f"{outer}norm"):
        weights[f"{name}.weight"] = 1 + 0.2 * torch.randn(HIDDEN, generator=generator)
    weights["lm_head.weight"] = torch.randn(size, HIDDEN, generator=generator)
    if reduced:
        chosen = torch.randperm(VOCAB, generator=generator)[:size].sort().values
        weights["d2t"] = chosen - torch.arange(size)
        weights["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, chosen, True)
    else:
        weights[f"{outer}embed_tokens.weight"] = torch.randn(VOCAB, HIDDEN, generator=generator)
    config: dict[str, Any] = {"draft_vocab_size": size, "norm_before_residual": before}
    if ids:
        config["eagle_aux_hidden_state_layer_ids"] = ids
    return write(folder, weights, architectures=["LlamaForCausalLMEagle3"], **config)


def medusa(folder: Path, prefix: str, layers: int) -> Path:
    generator, weights = torch.Generator().manual_seed(5), {}
    for head in range(3):
        for place in range(layers):
            weights[f"{prefix}{head}.{place}.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=generator) / 8
            weights[f"{prefix}{head}.{place}.linear.bias"] = torch.randn(HIDDEN, generator=generator)
        weights[f"{prefix}{head}.{layers}.weight"] = torch.randn(VOCAB, HIDDEN, generator=generator)
    return write(folder, weights)


class Plain:
    """A head on whole sequences, without a cache: states [length, hidden] and the next tokens in, states out."""

    def __init__(self, folder: Path, oracle: LlamaForCausalLM) -> None:
        self.w = load_file(folder / "model.safetensors")
        self.config = json.loads((folder / "config.json").read_text())
        self.oracle = oracle
        self.at = next(name.removesuffix("self_attn.q_proj.weight") for name in self.w if "q_proj" in name)
        self.third = self.w[f"{self.at}self_attn.q_proj.weight"].shape[1] == 2 * HIDDEN
        outer = "model." if self.at.startswith("model.") else ""
        self.embedding = oracle.model.embed_tokens.weight
        if self.third and f"{outer}embed_tokens.weight" in self.w:
            self.embedding = self.w[f"{outer}embed_tokens.weight"]
        self.norm_name = f"{outer}norm"

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.w[f"{name}.weight"] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """[length, heads, dim]"""
        angles = torch.outer(torch.arange(len(x)), THETA ** (-torch.arange(0, DIM, 2) / DIM))
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    def layer(self, tokens: list[int], states: torch.Tensor) -> torch.Tensor:
        embedded, at = self.embedding[tokens], self.at
        if self.third:
            normed = self.norm(f"{at}hidden_norm", states)
            x = torch.cat([self.norm(f"{at}input_layernorm", embedded), normed], -1)
            residual = normed if self.config["norm_before_residual"] else states
        else:
            x = residual = self.linear("fc", torch.cat([embedded, states], -1))
        query, key, value = (
            self.linear(f"{at}self_attn.{name}_proj", x).view(len(x), -1, DIM) for name in ("q", "k", "v")
        )
        query, key = self.rotate(query), self.rotate(key)
        key, value = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / DIM**0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(len(x), -1)
        residual = residual + self.linear(f"{at}self_attn.o_proj", mixed)
        inner = self.norm(f"{at}post_attention_layernorm", residual)
        gated = F.silu(self.linear(f"{at}mlp.gate_proj", inner)) * self.linear(f"{at}mlp.up_proj", inner)
        return residual + self.linear(f"{at}mlp.down_proj", gated)

    def token(self, state: torch.Tensor) -> int:
        if not self.third:
            return int((state @ self.oracle.lm_head.weight.T).argmax())
        best = int((self.norm(self.norm_name, state) @ self.w["lm_head.weight"].T).argmax())
        return best + int(self.w["d2t"][best]) if "d2t" in self.w else best

    @torch.no_grad()
    def draft(self, tokens: list[int], count: int) -> list[int]:
        """What may follow ``tokens``, of which the target has computed all but the last."""
        known = self.oracle.model(torch.tensor([tokens[:-1]]), output_hidden_states=True)
        if self.third:
            ids = self.config.get("eagle_aux_hidden_state_layer_ids") or (2, LAYERS // 2, LAYERS - 3)
            states = self.linear("fc", torch.cat([known.hidden_states[at][0] for at in ids], -1))
        else:
            states = known.last_hidden_state[0]
        following, guesses = tokens[1:], []
        for _ in range(count):
            out = self.layer(following, states)
            guesses.append(self.token(out[-1]))
            states, following = torch.cat([states, out[-1:]]), [*following, guesses[-1]]
        return guesses


class Spy:
    """Notes what a proposer answers to a batch of one row."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seen = inner, []
        self.max_tokens, self.tap_layers = inner.max_tokens, inner.tap_layers
        self.carried_like = inner.carried_like
        self.feed, self.catch_up = inner.feed, inner.catch_up

    def propose(self, ends, count):
        guesses = self.inner.propose(ends, count)
        self.seen += [(int(at), row) for at, row in zip(ends.positions, guesses.tolist(), strict=True)]
        return guesses


def run(folder: Path, record: ProposerRecord, path: Path, prompts: list[list[int]], **sections: Any) -> Any:
    """Answers, stats and what was guessed."""
    spies: list[Spy] = []

    def build(ctx, options, kit):
        spies.append(Spy(record.build(ctx, record.options(model=str(path), tokens=COUNT), kit)))
        return spies[-1]

    spied = ProposerRecord(name="spied", summary="For a test.", build=build, on_device=True)
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with LLM(str(folder), speculation={"use": spied, "adapt": False}, **sections) as llm:
        answers = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        return answers, llm.stats(), spies[0].seen


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(2)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (1, 7, 33, 50)]


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with LLM(str(folder)) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


EAGLES: dict[str, Any] = {
    "eagle 1": lambda at: eagle1(at, bias=False),
    "eagle 1, bias and a second embedding": lambda at: eagle1(at, bias=True),
    "eagle 3, reduced vocabulary": lambda at: eagle3(at, "midlayer.", [1, 3, 5], reduced=True, before=False),
    "eagle 3, own embedding": lambda at: eagle3(at, "layers.0.", None, reduced=False, before=True),
    "eagle 3, with a prefix": lambda at: eagle3(at, "model.layers.0.", None, reduced=True, before=False),
}


@pytest.mark.parametrize("kind", EAGLES)
def test_every_guess_of_an_eagle_head(kind, folder, oracle, prompts, expected, tmp_path) -> None:
    path = EAGLES[kind](tmp_path / "head")
    plain, (record,) = Plain(path, oracle), eagles()
    small = {"scheduler": {"max_batch_tokens": 20}, "cache": {"block_size": 4}}
    for prompt, answer in list(zip(prompts, expected, strict=True))[1:3]:
        answers, stats, seen = run(folder, record, path, [prompt], **small)
        assert answers == [answer]
        assert stats.speculation_off == ""
        assert len(seen) > 10
        tokens = prompt + answer
        for position, guesses in seen[::3]:
            if position < len(tokens):
                assert guesses == plain.draft(tokens[: position + 1], COUNT)


@pytest.mark.parametrize("kind", EAGLES)
def test_answers_are_those_without_a_head(kind, folder, prompts, expected, tmp_path) -> None:
    (record,) = eagles()
    tight = {"scheduler": {"max_batch_tokens": 24}, "cache": {"blocks": 12}}
    answers, stats, _ = run(folder, record, EAGLES[kind](tmp_path / "head"), prompts, **tight)
    assert answers == expected
    assert stats.drafts > 0


@pytest.mark.parametrize(("prefix", "layers"), [("", 1), ("medusa_head.", 2)])
def test_every_guess_of_medusa_heads(prefix, layers, folder, oracle, prompts, expected, tmp_path) -> None:
    path, (record,) = medusa(tmp_path / "heads", prefix, layers), medusas()
    answers, stats, seen = run(folder, record, path, [prompts[2]])
    assert answers == [expected[2]]
    assert stats.speculation_off == ""
    weights, tokens = load_file(path / "model.safetensors"), prompts[2] + expected[2]
    assert len(seen) > 10
    for position, guesses in seen:
        if position >= len(tokens):
            continue
        with torch.no_grad():
            state = oracle.model(torch.tensor([tokens[:position]])).last_hidden_state[0, -1]
        for head, guess in enumerate(guesses):
            x = state
            for place in range(layers):
                at = f"{prefix}{head}.{place}.linear"
                x = x + F.silu(F.linear(x, weights[f"{at}.weight"], weights[f"{at}.bias"]))
            assert guess == int((weights[f"{prefix}{head}.{layers}.weight"] @ x).argmax())
        assert len(guesses) == 3


def test_what_is_no_head_is_refused(folder, tmp_path) -> None:
    (record,) = eagles()
    with pytest.raises(CheckpointError, match="no EAGLE head"):
        run(folder, record, folder, [[5]])
    (other,) = medusas()
    with pytest.raises(CheckpointError, match="no Medusa heads"):
        run(folder, other, folder, [[5]])
    wrong = eagle3(tmp_path / "taps", "midlayer.", [1, 3, 9], reduced=True, before=False)
    with pytest.raises(CheckpointError, match="three numbers from 1 to 6"):
        run(folder, record, wrong, [[5]])
    empty = write(tmp_path / "empty", {}, kind="nothing")
    (empty / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \*.safetensors"):
        run(folder, record, empty, [[5]])
    assert EagleOptions(model="x").tokens == 5
