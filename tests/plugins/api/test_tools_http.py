"""Tools and reasoning over HTTP: what reaches the template and the engine, and how answers are read."""

from __future__ import annotations

import json

import jsonschema
import openai
import pydantic
import pytest

from octavo.errors import ConfigError
from octavo.structured import StructuredOutputs
from octavo.testing.client import ScriptedClient
from octavo_api.calling import calls_schema
from octavo_api.schemas_tools import Tool
from octavo_tools.plugin import octavo_tool_parsers

PARSERS = {record.name: record for record in octavo_tool_parsers()}
HERMES = "{% if tools %}<tool_call>{% endif %}"
THINK = "{{ '<think>' }}</think>" + HERMES
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK = [{"role": "user", "content": "How is it in Ulm?"}]
END = "</think>"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'


def client_that_says(text, template=HERMES, **fields):
    return ScriptedClient(answer=lambda prompt, index: text, chat_template=template, tool_parsers=PARSERS, **fields)


def streamed(chunks):
    """The message that a client puts together, and the reasons; checks the framing."""
    message, reasons = {"content": "", "reasoning": "", "tool_calls": []}, []
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            assert delta.get("reasoning") == delta.get("reasoning_content")
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    assert list(call) == ["index", "id", "type", "function"]
                    assert call["function"]["arguments"] == ""
                    message["tool_calls"].append({**call, "function": dict(call["function"])})
                else:
                    assert list(call) == ["index", "function"]
                    assert call["index"] == len(message["tool_calls"]) - 1
                    message["tool_calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
            reasons.append(choice["finish_reason"])
    assert all(reason is None for reason in reasons[:-1])
    return message, reasons[-1]


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    ("said", "content", "calls", "reason"),
    [
        (f"Let me look.\n{CALL}", "Let me look.", [("weather", '{"city": "Ulm"}')], "tool_calls"),
        (f"{CALL}\n{CALL}", None, [("weather", '{"city": "Ulm"}')] * 2, "tool_calls"),
        ("Just text.", "Just text.", [], "stop"),
        ("<tool_call>broken</tool_call>", "<tool_call>broken</tool_call>", [], "stop"),
    ],
)
def test_calls_that_a_model_makes_by_itself(make_api, step, said, content, calls, reason):
    api = make_api(client_that_says(said, tokens_per_delta=step))
    response = api.chat(tools=[WEATHER, CLOCK])
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == content
    found = choice["message"].get("tool_calls", [])
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in found] == calls
    assert len({call["id"] for call in found}) == len(calls)
    assert choice["finish_reason"] == reason
    _, tools, _ = api.client.rendered[0]
    shown = {key: value for key, value in WEATHER["function"].items() if key != "strict"}
    assert tools[0] == {"type": "function", "function": shown}
    message, last = streamed(events(api.chat(tools=[WEATHER, CLOCK], stream=True)))
    assert message["content"] == (content or "")
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]] == calls
    assert last == reason
    assert api.client.calls[-1].params.structured_outputs is None


def test_one_call_at_most(make_api):
    api = make_api(client_that_says(CALL + CALL))
    (choice,) = api.chat(tools=[WEATHER], parallel_tool_calls=False).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    message, _ = streamed(events(api.chat(tools=[WEATHER], parallel_tool_calls=False, stream=True)))
    assert len(message["tool_calls"]) == 1


def test_none_hides_the_tools(make_api):
    api = make_api(client_that_says(CALL))
    (choice,) = api.chat(tools=[WEATHER], tool_choice="none").json()["choices"]
    assert choice["message"]["content"] == CALL
    assert "tool_calls" not in choice["message"]
    assert api.client.rendered[0][1] == []


@pytest.mark.parametrize("template", [HERMES, ""])
def test_a_named_call_is_the_whole_answer(make_api, template):
    api = make_api(client_that_says('{"city": "Ulm"}', template))
    fields = {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    (choice,) = api.chat(**fields).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'}
    assert choice["finish_reason"] == "stop"  # as OpenAI has it where the function was named
    wanted = StructuredOutputs(json=WEATHER["function"]["parameters"])
    assert api.client.calls[0].params.structured_outputs == wanted
    message, last = streamed(events(api.chat(**fields, stream=True)))
    assert message["tool_calls"][0]["function"] == call["function"]
    assert last == "stop"


def test_required_calls_are_held_to_the_tools(make_api):
    said = '[{"name": "weather", "parameters": {"city": "Ulm"}}, {"name": "clock", "parameters": {}}]'
    api = make_api(client_that_says(said, ""))
    fields = {"tools": [WEATHER, CLOCK], "tool_choice": "required"}
    (choice,) = api.chat(**fields).json()["choices"]
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert calls == [{"name": "weather", "arguments": '{"city": "Ulm"}'}, {"name": "clock", "arguments": "{}"}]
    assert choice["finish_reason"] == "tool_calls"
    schema = json.loads(api.client.calls[0].params.structured_outputs.json)
    jsonschema.validate(json.loads(said), schema)
    for wrong in ([], [{"name": "other", "parameters": {}}], [{"name": "weather", "parameters": {}}]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    message, last = streamed(events(api.chat(**fields, stream=True)))
    assert [call["function"] for call in message["tool_calls"]] == calls
    assert last == "tool_calls"
    api.chat(**fields, parallel_tool_calls=False)
    assert json.loads(api.client.calls[-1].params.structured_outputs.json)["maxItems"] == 1


def test_schemas_of_tools_keep_their_own_definitions():
    def tool(name, kind):
        parameters = {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/x"}, "rest": {"$ref": "#"}},
            "additionalProperties": False,
            "$defs": {"x": {"type": kind}},
        }
        return Tool.model_validate({"type": "function", "function": {"name": name, "parameters": parameters}})

    schema = calls_schema([tool("f", "integer"), tool("g", "string")], True)
    jsonschema.validate([{"name": "f", "parameters": {"a": 1, "rest": {"a": 2}}}], schema)
    jsonschema.validate([{"name": "g", "parameters": {"a": "1"}}], schema)
    for wrong in ({"name": "f", "parameters": {"a": "1"}}, {"name": "g", "parameters": {"rest": {"a": 1}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([wrong], schema)


def test_earlier_calls_and_their_results_reach_the_template(make_api):
    api = make_api(client_that_says("Sunny."))
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "I need the weather."},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert api.chat(messages=messages, tools=[WEATHER]).status_code == 200
    sent, _, _ = api.client.rendered[0]
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert sent[1] == {**said, "reasoning_content": "I need the weather."}
    assert sent[2] == {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "two functions of one name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "whether"}}}, "tool_choice",
         "Did you mean 'weather'"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice", "required"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "no tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "'function'"),
        ({"tools": [{**CLOCK, "mood": 1}]}, "tools[0].mood", "knows"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format", "the model from"),
        ({"tools": [WEATHER], "tool_choice": "required", "guided_regex": "a"}, "guided_regex", "form of its own"),
    ],
)  # fmt: skip
def test_refusals(make_api, fields, param, words):
    response = make_api(client_that_says("x")).chat(**fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert words in error["message"]
    assert error["param"].startswith(param)


def test_a_model_that_knows_no_tools(make_api):
    error = make_api(client_that_says("x", "no place")).chat(tools=[WEATHER]).json()["error"]
    assert "has no place for tools" in error["message"]
    error = make_api(client_that_says("x", "{{ tools }}")).chat(tools=[WEATHER]).json()["error"]
    assert "set tool_parser to one of hermes" in error["message"]


def test_the_parser_comes_from_the_template_or_the_configuration(make_api):
    said = '[TOOL_CALLS][{"name": "weather", "arguments": {}}]'
    api = make_api(client_that_says(said, "{{ tools }}[TOOL_CALLS]"))
    (choice,) = api.chat(tools=[WEATHER]).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
    assert api.client.calls[0].params.skip_special_tokens is False
    api = make_api(client_that_says(said, HERMES), tool_parser="mistral")
    assert api.chat(tools=[WEATHER]).json()["choices"][0]["message"]["tool_calls"]
    with pytest.raises(ConfigError, match=r"tool_parser: no loaded plugin .*Did you mean 'mistral'"):
        make_api(client_that_says(said, HERMES), tool_parser="mistrall")


@pytest.mark.parametrize("step", [1, 4, 100])
@pytest.mark.parametrize(
    ("opening", "said", "reasoning", "content", "calls"),
    [
        ("<think>\n", f"Hm </thin? </think>\n\nSo: {CALL}", "Hm </thin? ", "So:", 1),
        ("", "\n<think>\nHm\n</think>\n\nYes", "Hm\n", "Yes", 0),
        ("", "No <think>ing</think>", "", "No <think>ing</think>", 0),
        ("<think>\n\n</think>\n\n", "Yes </think>", "", "Yes </think>", 0),
        ("<think>", "Never ends", "Never ends", "", 0),
        ("", "<thi", "", "<thi", 0),
    ],
)
def test_reasoning_is_divided_from_the_answer(make_api, step, opening, said, reasoning, content, calls):
    api = make_api(client_that_says(said, THINK, opening=opening, tokens_per_delta=step))
    answer = api.chat(tools=[WEATHER]).json()
    message = answer["choices"][0]["message"]
    assert message.get("reasoning", "") == message.get("reasoning_content", "") == reasoning
    assert (message["content"] or "") == content
    assert len(message.get("tool_calls", ())) == calls
    found, _ = streamed(events(api.chat(tools=[WEATHER], stream=True)))
    assert (found["reasoning"], found["content"], len(found["tool_calls"])) == (reasoning, content, calls)
    hidden = api.chat(tools=[WEATHER], include_reasoning=False).json()["choices"][0]["message"]
    assert "reasoning" not in hidden
    assert (hidden["content"] or "") == content
    if opening == "<think>\n" and step < 100:
        counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < counted < answer["usage"]["completion_tokens"]


def test_reasoning_can_be_switched_off(make_api):
    api = make_api(client_that_says("a</think>b", THINK, opening="<think>"), reasoning="none")
    assert api.chat().json()["choices"][0]["message"]["content"] == "a</think>b"
    api = make_api(client_that_says("[THINK]a[/THINK]b", ""), reasoning="magistral")
    assert api.chat().json()["choices"][0]["message"]["reasoning"] == "a"


@pytest.mark.parametrize(
    ("opening", "option", "after"),
    [
        ("<think>", "auto", "</think>"),
        ("", "auto", ""),
        ("", "think", "</think>"),
        ("<think></think>", "think", ""),
    ],
)
def test_the_form_begins_behind_the_reasoning(make_api, opening, option, after):
    api = make_api(client_that_says("x", THINK, opening=opening), reasoning=option)
    api.chat(response_format={"type": "json_object"})
    assert api.client.calls[0].params.structured_outputs == StructuredOutputs(json_object=True, after=after)
    api.chat(tools=[WEATHER], tool_choice="required")
    assert api.client.calls[1].params.structured_outputs.after == after


class City(pydantic.BaseModel):
    """A place."""

    city: str
    people: int


def test_the_official_client_parses_answers_and_calls(make_live):
    live = make_live(client_that_says('{"city": "Ulm", "people": 128000}'))
    with live.openai() as client:
        answer = client.chat.completions.parse(model="scripted", messages=ASK, response_format=City)
        assert answer.choices[0].message.parsed == City(city="Ulm", people=128000)
    live = make_live(
        client_that_says('<tool_call>{"name": "City", "arguments": {"city": "Ulm", "people": 1}}</tool_call>')
    )
    tools = [openai.pydantic_function_tool(City)]
    with live.openai() as client:
        answer = client.chat.completions.parse(model="scripted", messages=ASK, tools=tools)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.parsed_arguments == City(city="Ulm", people=1)
        with client.chat.completions.stream(model="scripted", messages=ASK, tools=tools) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == City(city="Ulm", people=1)
    assert final.choices[0].finish_reason == "tool_calls"
