"""llguidance in a whole engine: random weights are the worst case, since nothing they say is right by itself."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.errors import RequestError
from octavo.testing.schemas import random_schema
from octavo.testing.tiny import tiny_llama

pytest.importorskip("llguidance")

CASES = 300
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("structured") / "model")


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(model={"path": str(folder), "threads": 1}, cache={"blocks": 2048}) as llm:
        yield llm


def held(max_tokens=100, temperature=1.0, n=1, seed=0, **form):
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, n=n, seed=seed, structured_outputs=StructuredOutputs(**form)
    )


def answers(llm, params, prompt="Say"):
    return [answer for output in llm.generate([prompt] * len(params), params) for answer in output.outputs]


def test_random_schemas_give_valid_json(llm):
    schemas = [random_schema(seed) for seed in range(CASES)]
    wanted = [
        held(max_tokens=250, temperature=5.0, seed=seed, json=schema, disable_any_whitespace=seed % 8 != 0)
        for seed, schema in enumerate(schemas)
    ]
    finished = 0
    for schema, answer in zip(schemas, answers(llm, wanted), strict=True):
        if answer.finish_reason == "stop":
            finished += 1
            jsonschema.validate(
                json.loads(answer.text), schema, format_checker=jsonschema.FormatChecker(("date", "ipv4"))
            )
        else:
            assert answer.finish_reason == "length"
    assert finished > 0.8 * CASES


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[a-f]{2}-[0-9]{3}"}, r"[a-f]{2}-[0-9]{3}"),
        ({"choice": ["yes", "no", 'say "maybe"', "ja\\nein\n"]}, 'yes|no|say "maybe"|ja\\\\nein\n'),
        ({"grammar": 'root ::= word (" " word){2}\nword ::= [a-z]{1,3}'}, r"[a-z]{1,3}( [a-z]{1,3}){2}"),
        ({"grammar": 'start: /[0-9]{1,4}/ ("+" | "-") /[0-9]{1,4}/'}, r"\d{1,4}[+-]\d{1,4}"),
        ({"json": True}, r"[\s\S]*"),
    ],
    ids=["regex", "choice", "EBNF", "Lark", "any JSON"],
)
def test_forms(llm, form, pattern):
    found = answers(llm, [held(n=4, seed=seed, temperature=5.0, **form) for seed in range(5)])
    assert all(answer.finish_reason in ("stop", "length") for answer in found)
    texts = [answer.text for answer in found if answer.finish_reason == "stop"]
    assert texts or form == {"json": True}
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert form == {"json": True} or len(set(texts)) > 1


def test_json_object(llm):
    found = answers(llm, [held(json_object=True, seed=seed, disable_any_whitespace=True) for seed in range(20)])
    for answer in found:
        assert answer.text.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


def test_a_greedy_answer_is_the_likeliest_allowed_token_at_each_place(llm):
    """The oracle: the model's own log-probabilities without a mask, restricted by hand."""
    form = {"regex": "[a-c]{4}"}
    (answer,) = answers(llm, [held(temperature=0, **form)])
    said = list(llm.encode("Say"))
    ids = {text: llm.encode(text, add_special_tokens=False) for text in ("a", "b", "c")}
    assert all(len(tokens) == 1 for tokens in ids.values())
    bias = {tokens[0]: 100.0 for tokens in ids.values()}
    for token in answer.token_ids[:4]:
        params = SamplingParams(max_tokens=1, temperature=0, logit_bias=bias)
        assert llm.generate(said, params)[0].outputs[0].token_ids == [token]
        said.append(token)


def test_log_probabilities_are_those_of_what_is_allowed(llm):
    params = SamplingParams(
        max_tokens=4, logprobs=4, temperature=0, structured_outputs=StructuredOutputs(choice=["a", "b"])
    )
    scores = llm.generate("Say", params)[0].outputs[0].logprobs[0]
    assert sorted(entry.token for entry in scores.top[:2]) == ["a", "b"]
    assert sum(2.718281828**entry.logprob for entry in scores.top[:2]) == pytest.approx(1, abs=1e-4)


def test_unconstrained_neighbours_are_what_they_are_alone(llm):
    plain = SamplingParams(max_tokens=30, seed=7, ignore_eos=True)
    (alone,) = answers(llm, [plain])
    mixed = answers(llm, [plain, held(json=PERSON), plain, held(regex="[a-z]+")])
    assert mixed[0].token_ids == mixed[2].token_ids == alone.token_ids


def test_neighbours_preemption_prefixes_and_drafts_change_nothing(llm, folder):
    wanted = [held(max_tokens=90, seed=seed, json=PERSON, temperature=2.0) for seed in range(12)]
    prompts = ["The same long beginning of a prompt, " * 3 + str(seed % 3) for seed in range(12)]
    alone = [llm.generate(prompt, params)[0].outputs[0] for prompt, params in zip(prompts, wanted, strict=True)]
    for sections in ({"cache": {"blocks": 40}}, {"speculation": "ngram"}, {"scheduler": {"max_batch_tokens": 16}}):
        with LLM(model={"path": str(folder), "threads": 1}, **{"cache": {"blocks": 256}, **sections}) as other:
            together = [output.outputs[0] for output in other.generate(prompts, wanted)]
            assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone], sections
            if "cache" in sections:
                assert other.stats().preemptions > 0
            if "speculation" in sections:
                assert other.stats().accepted > 0


@pytest.mark.parametrize("params", [{"min_tokens": 40}, {"ignore_eos": True}], ids=str)
def test_the_grammar_has_the_last_word_on_the_end(llm, params):
    form = StructuredOutputs(regex="[a-z]{3}")
    (answer,) = answers(llm, [SamplingParams(max_tokens=60, structured_outputs=form, **params)])
    assert answer.finish_reason == "stop"
    assert re.fullmatch("[a-z]{3}", answer.text)


def test_stop_strings_and_stop_tokens_end_it_early(llm):
    form = StructuredOutputs(regex="[a-z]{2},[a-z]{2}")
    (text,) = answers(llm, [SamplingParams(max_tokens=60, structured_outputs=form, stop=[","])])
    assert re.fullmatch("[a-z]{2}", text.text)
    assert (text.finish_reason, text.stop_reason) == ("stop", ",")
    (comma,) = llm.encode(",", add_special_tokens=False)
    (token,) = answers(llm, [SamplingParams(max_tokens=60, structured_outputs=form, stop_token_ids=[comma])])
    assert (token.finish_reason, token.stop_reason) == ("stop", comma)


def test_limits_that_leave_nothing_end_one_request(llm):
    (a,) = llm.encode("a", add_special_tokens=False)
    bad = SamplingParams(structured_outputs=StructuredOutputs(choice=["b", "c"]), allowed_token_ids=[a])
    with pytest.raises(RequestError, match="bar every token"):
        answers(llm, [bad])
    assert answers(llm, [held(choice=["a"])])[0].text == "a"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"type": "objekt"}}, r"structured_outputs\.json .*Invalid type: objekt"),
        ({"json": {"type": "array", "uniqueItems": True}}, "Unimplemented keys.*uniqueItems"),
        ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "Unsatisfiable schema: minLength"),
        ({"json": False}, "nothing satisfies"),
        ({"json": {"$ref": "#/$defs/missing"}}, r"structured_outputs\.json"),
        ({"regex": "(a"}, r"structured_outputs\.regex .*unclosed group"),
        ({"regex": "(?=a)b"}, "look-around.*not supported"),
        ({"grammar": 'root ::= ("a" | '}, r"structured_outputs\.grammar .*Expected '\)'"),
        ({"grammar": 'root ::= "a" | other'}, "Rule 'other' not found"),
        ({"grammar": "start: other"}, 'unknown name: "other"'),
        ({"json": "{}", "whitespace_pattern": "("}, "structured_outputs"),
    ],
)
def test_what_is_wrong_is_named(llm, form, message):
    with pytest.raises(RequestError, match=message) as caught:
        answers(llm, [held(**form)])
    assert caught.value.status == 400
    assert caught.value.param.startswith("structured_outputs")


def test_without_a_backend_requests_are_refused_with_the_reason(folder):
    with (
        LLM(folder, structured_outputs="none") as llm,
        pytest.raises(RequestError, match=r"no structured outputs: switched off by structured_outputs\.use"),
    ):
        answers(llm, [held(regex="a")])


def test_a_missing_library_is_a_reason(monkeypatch):
    from octavo_structured import plugin

    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    (record,) = plugin.octavo_structured_outputs()
    assert "pip install 'octavo[structured]'" in record.supports(None)


@pytest.mark.model
def test_the_bundled_model_fills_in_a_schema():
    with LLM(model={"path": "bundled:smollm2-135m-instruct", "threads": 1}, cache={"blocks": 64}) as llm:
        messages = [{"role": "user", "content": "Bob is 42 years old. Give his name and age as JSON."}]
        params = held(json=PERSON, max_tokens=60, temperature=0)
        found = json.loads(llm.chat(messages, params)[0].outputs[0].text)
    assert found == {"name": "Bob", "age": 42}
