"""The form of an answer, over HTTP: which fields say it, what reaches the engine, what is refused."""

from __future__ import annotations

import json

import pytest

from octavo.structured import StructuredOutputs

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEXT = json.dumps(SCHEMA)
TIGHT, SPACED = {"disable_any_whitespace": True}, {"whitespace_pattern": " ?"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "description": "b", "schema": SCHEMA, "strict": True},
                }
            },
            {"json": TEXT},
        ),
        ({"structured_outputs": {"json": SCHEMA, **TIGHT}}, {"json": TEXT, **TIGHT}),
        ({"structured_outputs": {"json": TEXT, "regex": None}}, {"json": TEXT}),
        ({"structured_outputs": {"json_object": True, **SPACED}}, {"json_object": True, **SPACED}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ("a", "b")}),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, {"grammar": 'root ::= "a"'}),
        ({"guided_json": SCHEMA}, {"json": TEXT}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a"]}, {"choice": ("a",)}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
    ],
)  # fmt: skip
def test_forms_reach_the_engine(api, fields, expected):
    wanted = None if expected is None else StructuredOutputs(**expected)
    for ask in (api.chat, api.complete):
        response = ask(**fields)
        assert response.status_code == 200, response.text
        assert api.client.calls[-1].params.structured_outputs == wanted


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "required",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            "response_format.schema",
            "not a field that this server knows",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "none is given"),
        (
            {"structured_outputs": {"regex": "a", "json_object": True}},
            "structured_outputs",
            "and regex are",
        ),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1 to 4096 texts"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"structured_outputs": {"rgex": "a"}}, "structured_outputs.rgex", "Did you mean 'regex'"),
        ({"structured_outputs": {"json": "[1"}}, "structured_outputs.json", "must be a JSON schema"),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, None, "about JSON"),
        ({"guided_json": "nope"}, "guided_json", "must be a JSON schema"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "each set the form"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "each set the form"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend", "not supported"),
    ],
)
def test_what_is_wrong_is_named(api, fields, param, message):
    for ask in (api.chat, api.complete):
        response = ask(**fields)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert message in error["message"]
        assert param is None or error["param"] == param
    assert api.client.calls == []
