"""Tool parsers: what each format means, however it is cut into pieces; what is no call; and that time is linear."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.tool_json import split_held
from octavo_tools.plugin import octavo_tool_parsers

PARSERS = {record.name: record for record in octavo_tool_parsers()}


def assemble(pieces):
    """Text, and calls as pairs of name and arguments; the order of pieces is that which clients rely on."""
    text, calls = "", []
    for piece in pieces:
        if piece.call is None:
            text += piece.text
        elif piece.name is not None:
            assert piece.call == len(calls)
            assert not piece.arguments
            calls.append([piece.name, ""])
        else:
            assert piece.call == len(calls) - 1
            calls[-1][1] += piece.arguments
    return text, [(name, arguments) for name, arguments in calls]


def read(name, chunks):
    parser = PARSERS[name].build([])
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    return assemble([*pieces, *parser.end()])


def cut(text, seed):
    source, places = random.Random(seed), []
    if seed == 0:
        return list(text)
    while sum(places) < len(text):
        places.append(source.randint(1, 7 if seed % 2 else 30))
    ends = [sum(places[: i + 1]) for i in range(len(places))]
    return [text[end - size : end] for size, end in zip(places, ends, strict=True)]


A, B = '{"city": "Köln \\"am\\" }{ Rhein", "n": [1, {"x": null}]}', "{}"
BOTH = [("f", A), ("g", B)]
LIST = f'[{{"name": "f", "arguments": {A}}}, {{"name": "g", "arguments": {{}}}}]'
CASES = {
    "hermes": [
        (f'<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>', "", [("f", A)]),
        (
            f'I look.\n<tool_call>{{"name":"f","arguments":{A}}}</tool_call>\n'
            f'<tool_call>\n{{"arguments": {B}, "name": "g"}}\n</tool_call>\n',
            "I look.",
            [("f", A), ("g", B)],
        ),
        ('<tool_call>{"name": "f", "id": 7, "parameters": {}}</tool_call> Done.', " Done.", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
        ("No call <tool_ca at all", "No call <tool_ca at all", []),
        ("a < b <tool_call", "a < b <tool_call", []),
        ("<tool_call>not JSON</tool_call> x", "<tool_call>not JSON</tool_call> x", []),
        ('<tool_call>{"nome": "f"}</tool_call>', '<tool_call>{"nome": "f"}</tool_call>', []),
        ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
        ('<tool_call>{"na', '<tool_call>{"na', []),
        ('<tool_call>{"name": "f", "arguments": {"a": ', "", [("f", '{"a": ')]),
        ("  spaced  ", "  spaced  ", []),
    ],
    "llama3_json": [
        (f'{{"name": "f", "parameters": {A}}}', "", [("f", A)]),
        (f'<|python_tag|>{{"name": "f", "parameters": {A}}}; {{"name": "g", "parameters": {{}}}}', "", BOTH),
        (f'\n {{"name": "f", "parameters": {A}}}', "", [("f", A)]),
        ("Plain { text }", "Plain { text }", []),
        ('{"answer": 42}', '{"answer": 42}', []),
        ('{"answer": 42} and more', '{"answer": 42} and more', []),
        ("{", "{", []),
    ],
    "jamba": [(f'<tool_calls>{LIST}</tool_calls>', "", BOTH)],
    "granite": [(f'<|tool_call|>[{{"name": "f", "arguments": {A}}}]', "", [("f", A)])],
    "phi4_mini": [
        (f'functools[{{"name": "f", "arguments": {A}}}]', "", [("f", A)]),
        ("functools[1, 2]", "functools[1, 2]", []),
    ],
    "mistral": [
        (f'[TOOL_CALLS] {LIST}', "", BOTH),
        (f"[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{{}}", "", [("f", A), ("g", B)]),
        (f"Let me see.[TOOL_CALLS]f{A}", "Let me see.", [("f", A)]),
        ("[TOOL_CALLS]no call here", "[TOOL_CALLS]no call here", []),
        ("[TOOL_CALLS][1]", "[TOOL_CALLS][1]", []),
        ("Just [text]", "Just [text]", []),
    ],
    "pythonic": [
        (
            "[f(city='Köln [\"1\"]', n=[1, {'x': None}], ok=true), a.g()]",
            "",
            [("f", '{"city": "Köln [\\"1\\"]", "n": [1, {"x": null}], "ok": true}'), ("a.g", "{}")],
        ),
        ('<|python_start|>[f(a="x\\"y)")]<|python_end|>', "", [("f", '{"a": "x\\"y)"}')]),
        ("[1, 2, 3]", "[1, 2, 3]", []),
        ("[f(1)] is not named", "[f(1)] is not named", []),
        ("[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),
        ("Hello (world)", "Hello (world)", []),
        ("[f(a=1", "[f(a=1", []),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said", "calls"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_a_format_means_the_same_however_it_is_cut(name, text, said, calls):
    assert CASES.keys() == PARSERS.keys()
    for seed in range(12):
        assert read(name, cut(text, seed)) == (said, calls), cut(text, seed)
    assert read(name, [text]) == (said, calls)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "functools", "<|python_tag|>",
             '{"name": "f", ',
             '"arguments": ', "{", "}", "[", "]", "(", ")", '"', "\\", ",", ";", "f(a=1)", " x ", "\n", "é", "1"]
        ), max_size=30,
    ),
    st.integers(0, 9),
)  # fmt: skip
def test_anything_gives_an_answer_and_calls_always_have_names(parts, seed):
    text = "".join(parts)
    for name in PARSERS:
        said, calls = read(name, cut(text, seed))
        assert all(called for called, _ in calls)
        if not calls:
            assert said.strip() == text.strip(), "what is no call is text"
        assert bool(read(name, [text])[1]) == bool(calls)


@pytest.mark.parametrize("name", PARSERS)
def test_time_is_linear(name):
    """Twenty times as long takes not much more than twenty times as long, whatever state a parser is in."""
    call = '{"name": "f", "arguments": {"a": "x'
    openings = {
        "mistral": "[TOOL_CALLS]f{",
        "pythonic": "[f(a=",
        "granite": "<|tool_call|>",
        "phi4_mini": "functools",
    }
    for text in (f"<tool_call><tool_calls>{call}", openings.get(name, "") + call, "<[f", "  ", "[{"):
        times = []
        for length in (500, 10_000):
            parser, began = PARSERS[name].build([]), time.process_time()
            for chunk in (text, *([text[-3:]] * length)):
                parser.feed(chunk)
            parser.end()
            times.append(time.process_time() - began)
        assert times[1] < 100 * max(times[0], 0.002), (text, times)


@settings(max_examples=100, deadline=None)
@given(st.text("ab<>|", max_size=12), st.lists(st.text("ab<>|", min_size=1, max_size=5), min_size=1, max_size=3))
def test_what_may_be_the_beginning_of_a_mark_is_held_back(text, marks):
    shown, held = split_held(text, marks)
    assert shown + held == text
    ends = [text[-size:] for size in range(1, len(text) + 1)]
    could = [end for end in ends if any(mark.startswith(end) and mark != end for mark in marks)]
    assert held == max(could, key=len, default="")


def test_arguments_come_as_they_are_said():
    parser = PARSERS["hermes"].build([])
    names, fragments = [], []
    for char in f'<tool_call>{{"name": "f", "arguments": {A}}}</tool_call>':
        for piece in parser.feed(char):
            (names if piece.name else fragments).append(piece)
    assert len(names) == 1
    assert len(fragments) == len(A)
    assert json.loads("".join(piece.arguments for piece in fragments)) == json.loads(A)
