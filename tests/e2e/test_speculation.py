"""Speculation changes no answer: whatever is drafted, sampled, batched, preempted or cached."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.contracts.proposer import Draft
from octavo.errors import ConfigError
from octavo.records import LogitsProcessorRecord, ProposerRecord
from octavo.testing.tiny import tiny_llama

SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "seed": 3},
    "truncated": {"temperature": 0.7, "seed": 4, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "logprobs": 3},
    "penalised": {
        "temperature": 0.5,
        "seed": 5,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.4,
        "logprobs": 1,
    },
    "steered": {"temperature": 0.6, "seed": 6, "logit_bias": {40: 3.0, 41: -5.0}, "bad_words": ("th", "e", " a b")},
    "short": {
        "temperature": 1.0,
        "seed": 7,
        "min_tokens": 5,
        "stop_token_ids": tuple(range(60, 110)),
        "logprobs": 0,
    },
    "strings": {"temperature": 0.9, "seed": 8, "stop": ("e", "s a"), "include_stop_str_in_output": True},
    "several": {"temperature": 0.9, "seed": 9, "n": 3},
}


class Hinted:
    """Drafts the rest of what its prompts were answered before, with some tokens wrong."""

    max_tokens = 5

    def __init__(self, answers: dict[tuple[int, ...], list[int]], rightness: float) -> None:
        self.answers, self.rightness = answers, rightness
        self.random = random.Random(1)
        self.rows: dict[int, list[int]] = {}

    def reserve(self, row, tokens):
        self.rows[row] = list(tokens)

    def release(self, row):
        del self.rows[row]

    def propose(self, rows):
        tokens, lengths = np.zeros((len(rows), self.max_tokens), np.int64), np.zeros(len(rows), np.int64)
        for place, asked in enumerate(rows):
            known = self.rows[asked.row]
            known += asked.fresh
            for prompt, answer in self.answers.items():
                if tuple(known[: len(prompt)]) == prompt:
                    ahead = answer[len(known) - len(prompt) :][: asked.limit]
                    ahead = [t if self.random.random() < self.rightness else (t + 1) % 320 for t in ahead]
                    lengths[place] = len(ahead)
                    tokens[place, : len(ahead)] = ahead
        return Draft(tokens, lengths)


class Rude:
    """A proposer whose answers are wrong in one way."""

    max_tokens = 4

    def __init__(self, what: str) -> None:
        self.what = what

    def reserve(self, row, tokens):
        if self.what == "reserve":
            raise RuntimeError("no room")

    def release(self, row): ...

    def propose(self, rows):
        if self.what == "crash":
            raise RuntimeError("crashed")
        if self.what == "shape":
            return Draft(np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64))
        return Draft(np.full((len(rows), 2), 320), np.ones(len(rows), np.int64))


def record_of(proposer: Any) -> ProposerRecord:
    return ProposerRecord(name="given", summary="For a test.", build=lambda ctx, options: proposer)


def repetitive(rng: random.Random, period: int, times: int) -> list[int]:
    return [rng.randrange(3, 320) for _ in range(period)] * times


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("speculation"), max_length=256)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(8)
    shared = [rng.randrange(3, 320) for _ in range(35)]
    found = [[rng.randrange(3, 320) for _ in range(length)] for length in (1, 2, 16, 17, 40, 90)]
    found += [repetitive(rng, period, 60 // period) for period in (1, 2, 5, 13)]
    return found + [shared + [rng.randrange(3, 320) for _ in range(length)] for length in (3, 20)]


def outcome(llm: LLM, prompts: list[list[int]], names: list[str], tokens: int = 30) -> list[Any]:
    """Everything a client sees of each answer. Each prompt has sampling options of its own, all in one batch."""
    params = [
        SamplingParams(max_tokens=tokens, ignore_eos=True, **SAMPLED[names[i % len(names)]])
        for i in range(len(prompts))
    ]
    return [
        [
            (answer.token_ids, answer.text, answer.finish_reason, answer.stop_reason, scores(answer.logprobs))
            for answer in output.outputs
        ]
        for output in llm.generate(prompts, params)
    ]


class Near(list[float]):
    """Nearly equal is equal: a step over more tokens adds in another order."""

    def __eq__(self, other: object) -> bool:
        return list(self) == pytest.approx(other, abs=1e-4)

    __hash__ = None


def scores(logprobs: Any) -> Any:
    if logprobs is None:
        return None
    found = [(entry.token_id, entry.rank, len(entry.top)) for entry in logprobs]
    return found, Near(entry.logprob for entry in logprobs)


@pytest.fixture(scope="module")
def plain(folder: Path, prompts: list[list[int]]) -> dict[int, list[Any]]:
    """Outcomes without speculation, with the options shifted by so many prompts."""
    with LLM(str(folder)) as llm:
        return {shift: outcome(llm, prompts, rotated(shift)) for shift in (0, 3, 6)}


def rotated(shift: int) -> list[str]:
    names = list(SAMPLED)
    return names[shift:] + names[:shift]


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "one at a time": {"scheduler": {"max_sequences": 1}},
    "three at a time": {"scheduler": {"max_sequences": 3}},
    "chunks of 7": {"scheduler": {"max_batch_tokens": 7}},
    "no prefix cache": {"cache": {"prefix_caching": False}},
    "blocks of 4": {"cache": {"block_size": 4}},
    "preemption": {"cache": {"blocks": 14}},
    "preemption, chunks, small blocks": {
        "cache": {"blocks": 50, "block_size": 4, "prefix_caching": False},
        "scheduler": {"max_batch_tokens": 24},
    },
}


@pytest.mark.parametrize("rightness", [0.75, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_without_drafts(way, rightness, folder, prompts, plain) -> None:
    hints: dict[tuple[int, ...], list[int]] = {}
    proposer = Hinted(hints, rightness)
    with LLM(str(folder), speculation=record_of(proposer), **WAYS[way]) as llm:
        for shift, expected in plain.items():
            hints.clear()
            hints.update({tuple(p): answers[0][0] for p, answers in zip(prompts, expected, strict=True)})
            assert outcome(llm, prompts, rotated(shift)) == expected
        stats = llm.stats()
        assert stats.speculation_off == ""
        assert stats.accepted > 50
        assert stats.used_blocks == 0
        if rightness < 1:
            assert stats.accepted < stats.drafted
        if "preemption" in way:
            assert stats.preemptions > 0


@pytest.mark.parametrize("way", ["as it comes", "chunks of 7", "preemption"])
def test_ngram_drafts_change_nothing(way, folder, prompts, plain) -> None:
    with LLM(str(folder), speculation={"use": "ngram", "options": {"shortest": 1}}, **WAYS[way]) as llm:
        for shift, expected in plain.items():
            assert outcome(llm, prompts, rotated(shift)) == expected
        assert llm.stats().drafts > 0


def test_ngrams_are_right_where_answers_repeat(folder) -> None:
    """A strong bias makes the answer run in a circle."""
    params = SamplingParams(
        temperature=0.0, max_tokens=60, ignore_eos=True, logit_bias={50: 100.0, 51: 100.0}, frequency_penalty=0.5
    )
    with LLM(str(folder)) as llm:
        expected = llm.generate([[9, 8, 7]], params)[0].outputs[0].token_ids
        plain_steps = llm.stats().steps
    with LLM(str(folder), speculation="ngram") as llm:
        assert llm.generate([[9, 8, 7]], params)[0].outputs[0].token_ids == expected
        stats = llm.stats()
    assert stats.accepted > 20
    assert stats.steps < plain_steps - 20
    assert sum(stats.accepted_at) == stats.accepted


@pytest.fixture(scope="module")
def drafts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The model itself; a noisy copy of it, which is often right; and a stranger of another shape."""
    noisy = tmp_path_factory.mktemp("noisy") / "model"
    shutil.copytree(folder, noisy)
    weights = load_file(noisy / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            weight += 0.08 * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, noisy / "model.safetensors")
    stranger = tiny_llama(noisy.parent / "stranger", seed=3, layers=1, hidden=32, kv_heads=1, max_length=256)
    return {"itself": str(folder), "noisy": str(noisy), "stranger": str(stranger)}


def guessing(path: str, **options: Any) -> dict[str, Any]:
    return {"use": "draft-model", "options": {"model": path, "tokens": 4, **options}, "adapt": False}


@pytest.mark.parametrize("way", ["as it comes", "chunks of 7", "preemption, chunks, small blocks"])
def test_a_draft_model_changes_nothing(way, folder, prompts, plain, drafts) -> None:
    with LLM(str(folder), speculation=guessing(drafts["noisy"]), **WAYS[way]) as llm:
        for shift, expected in list(plain.items())[: 1 if "chunks" in way else 3]:
            assert outcome(llm, prompts, rotated(shift)) == expected
        stats = llm.stats()
    assert stats.speculation_off == ""
    assert 20 < stats.accepted < stats.drafted
    assert stats.used_blocks == 0
    if "preemption" in way:
        assert stats.preemptions > 0


@pytest.mark.parametrize("draft", ["itself", "stranger"])
def test_neither_a_perfect_nor_a_useless_draft_changes_anything(draft, folder, prompts, plain, drafts) -> None:
    with LLM(str(folder), speculation=guessing(drafts[draft], dtype="bfloat16"), cache={"blocks": 60}) as llm:
        assert outcome(llm, prompts, rotated(0)) == plain[0]
        assert llm.stats().drafts > 0


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_a_draft_equal_to_its_target_is_right_at_any_temperature(temperature, folder, prompts) -> None:
    """The draft draws with the target's own noise. Any that it missed, a wrong position or a hole in its cache
    would show here: rows that wait, share prefixes, and come back from preemption."""
    params = [
        SamplingParams(max_tokens=40, temperature=temperature, seed=seed, ignore_eos=True)
        for seed in range(len(prompts))
    ]
    limits = {"cache": {"blocks": 40, "block_size": 8}, "scheduler": {"max_batch_tokens": 48, "max_sequences": 5}}
    with LLM(str(folder), speculation=guessing(str(folder)), **limits) as llm:
        llm.generate(prompts, params)
        stats = llm.stats()
    assert stats.accepted > 200
    assert stats.accepted > 0.97 * stats.drafted
    assert stats.steps < 0.75 * stats.generated_tokens


def test_each_request_tells_what_was_drafted_for_it(folder, prompts, drafts) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    with LLM(str(folder), speculation=guessing(drafts["noisy"])) as llm:
        metrics = [output.metrics for output in llm.generate(prompts, params)]
        stats = llm.stats()
    assert sum(each.drafted_tokens for each in metrics) == stats.drafted > 0
    assert sum(each.accepted_tokens for each in metrics) == stats.accepted > 0


def test_a_draft_model_has_its_own_quantisation_and_its_target_too(folder, prompts, drafts) -> None:
    params = SamplingParams(max_tokens=25, temperature=0.0, ignore_eos=True)
    with LLM(str(folder), quantization="int8") as llm:
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    speculation = guessing(drafts["noisy"], quantization="int8")
    with LLM(str(folder), quantization="int8", speculation=speculation) as llm:
        assert [output.outputs[0].token_ids for output in llm.generate(prompts, params)] == expected
        assert llm.stats().accepted > 20


class Crude:
    """A device proposer whose answers are wrong in one way."""

    max_tokens, tap_layers, carried_like = 3, (), None

    def __init__(self, what: str) -> None:
        self.what = what

    def feed(self, computed):
        if self.what == "feed":
            raise RuntimeError("choked")

    def catch_up(self, token_ids, batch): ...

    def propose(self, ends, count):
        rows = len(ends.positions)
        if self.what == "crash":
            raise RuntimeError("crashed")
        if self.what == "shape":
            return torch.zeros(rows, count + 1, dtype=torch.int64)
        if self.what == "type":
            return torch.zeros(rows, count)
        return torch.full((rows, count), {"range": 320, "negative": -1}.get(self.what, 0))


CRUDE = {
    "feed": "RuntimeError: choked",
    "crash": "RuntimeError: crashed",
    "shape": r"must return int64 \[\d+, \d\], not torch.int64 \[\d+, \d\]",
    "type": "not torch.float32",
    "range": "a guessed token is not between 0 and 319",
    "negative": "a guessed token is not between 0 and 319",
}


@pytest.mark.parametrize("what", CRUDE)
def test_a_broken_device_proposer_is_switched_off_by_name(what, folder, prompts, plain, caplog) -> None:
    record = ProposerRecord(
        name="crude", summary="For a test.", build=lambda ctx, options, kit: Crude(what), on_device=True
    )
    with LLM(str(folder), speculation=record) as llm:
        assert outcome(llm, prompts, rotated(0)) == plain[0]
        reason = llm.stats().speculation_off
    assert reason.startswith("proposer 'crude' was switched off: ")
    assert re.search(CRUDE[what], reason)
    assert reason in caplog.text


def test_a_draft_of_another_vocabulary_is_refused(folder, tmp_path) -> None:
    other = tiny_llama(tmp_path / "other", vocab=2000)
    with pytest.raises(ConfigError, match="must have the same vocabulary"):
        LLM(str(folder), speculation=guessing(str(other)))


def test_memory_is_planned_for_both(folder, drafts) -> None:
    from octavo.assemble import resolve
    from octavo.config.compose import load_launch
    from octavo.run.memory import plan_memory

    def plan(**sections: Any) -> Any:
        config, host = load_launch({"model": {"path": str(folder)}, **sections})
        return plan_memory(resolve(config, host))

    alone, both = plan(), plan(speculation=guessing(drafts["itself"]))
    assert both.kv_bytes_per_block == 2 * alone.kv_bytes_per_block
    assert both.weights_bytes == 2 * alone.weights_bytes


@pytest.mark.parametrize("what", ["crash", "shape", "range", "reserve"])
def test_a_broken_proposer_is_switched_off_by_name(what, folder, prompts, plain, caplog) -> None:
    with LLM(str(folder), speculation=record_of(Rude(what))) as llm:
        assert outcome(llm, prompts, rotated(0)) == plain[0]
        reason = llm.stats().speculation_off
    assert reason.startswith("proposer 'given' was switched off: ")
    assert reason in caplog.text


class Parity:
    """Bars odd or even ids by how many tokens it has accepted: wrong for drafts, and so not safe."""

    def __init__(self) -> None:
        self.count: dict[int, int] = {}

    def validate(self, params): ...

    def admit(self, row, params, prompt, output):
        self.count[row] = len(output)
        return bool(params.extra)

    def release(self, row): ...

    def apply(self, logits, rows):
        assert len(set(rows)) == len(rows), "a row was speculated on"
        for place, row in enumerate(rows):
            logits[place, self.count[row] % 2 :: 2] = -float("inf")
        return logits

    def accept(self, rows, tokens):
        for row in rows.tolist():
            self.count[row] += 1


def test_rows_with_an_unsafe_processor_do_not_speculate(folder, prompts) -> None:
    processor = LogitsProcessorRecord(
        name="parity",
        summary="For a test.",
        build=lambda ctx, options: Parity(),
        speculation_safe=False,
        argmax_invariant=False,
    )
    asking = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, extra={"parity": {}})
    other = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    params = [asking if index % 2 else other for index in range(len(prompts))]
    with LLM(str(folder), logits_processors=[processor]) as llm:
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    hints = {tuple(prompt): answer for prompt, answer in zip(prompts, expected, strict=True)}
    with LLM(str(folder), logits_processors=[processor], speculation=record_of(Hinted(hints, 1.0))) as llm:
        assert [output.outputs[0].token_ids for output in llm.generate(prompts, params)] == expected
        assert llm.stats().accepted > 50


def test_the_configuration_says_what_speculates(folder) -> None:
    from octavo.assemble import resolve
    from octavo.config.compose import load_launch
    from octavo.explain import explain

    def explained(**sections: Any) -> str:
        config, host = load_launch({"model": {"path": str(folder)}, **sections})
        return explain(resolve(config, host)).text()

    assert "proposer: none (not asked for)" in explained()
    assert "proposer: ngram (named in speculation.use; steps overlap while it rests" in explained(
        speculation="ngram"
    )
    assert "tokens = 3" in explained(speculation={"use": "ngram", "options": {"tokens": 3}})
    with pytest.raises(ConfigError, match="ngram"):
        explained(speculation="ngrams")
    with pytest.raises(ConfigError, match=r"speculation\.options"):
        explained(speculation={"use": "ngram", "options": {"tokenz": 3}})
