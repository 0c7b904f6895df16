"""Chat templates against transformers' rendering of the same templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from octavo.engine import chat_template
from octavo.engine.chat_template import check_template, render_chat
from octavo.errors import CheckpointError, RequestError
from octavo.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = """
{%- set ns = namespace(first=true) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('Unknown role ' ~ message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
    {%- set ns.first = false %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
TOOLS_TEMPLATE = """
{%- if tools %}
<|im_start|>system
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
{{ tools | tojson(indent=2) }}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
<|im_start|>assistant
        {%- for call in message.tool_calls %}
            {%- if call.function.name == "skip" %}{% continue %}{% endif %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
        {%- endfor %}<|im_end|>
    {%- else %}
<|im_start|>{{ message.role }}
{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{%- endif %}
"""
CHAT = [
    {"role": "system", "content": "  Be <b>brief</b> & kind.  "},
    {"role": "user", "content": 'Grüße 🦊\n\nHow\'s "it"?'},
    {"role": "assistant", "content": "Fine, and  "},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string", "é": "<&>"}}}}
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}},
            {"id": "2", "type": "function", "function": {"name": "skip", "arguments": {}}},
        ],
    },
    {"role": "tool", "content": "12°C"},
]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path_factory.mktemp("template")))


SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SMOLLM2, HEADERS, TOOLS_TEMPLATE])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_plain_chats(oracle: Any, template: str, prompt: bool, length: int) -> None:
    expected = oracle.apply_chat_template(
        CHAT[:length], chat_template=template, add_generation_prompt=prompt, tokenize=False
    )
    ours = render_chat(template, CHAT[:length], add_generation_prompt=prompt, special_tokens=SPECIAL)
    assert ours == expected


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SMOLLM2, HEADERS, TOOLS_TEMPLATE])
@pytest.mark.parametrize("content", ["Once upon", "trailing space ", "\n", "two\nlines\n", ""])
def test_continuing_the_final_message(oracle: Any, template: str, content: str) -> None:
    messages = [*CHAT[:2], {"role": "assistant", "content": content}]
    expected = oracle.apply_chat_template(
        messages, chat_template=template, continue_final_message=True, add_generation_prompt=False, tokenize=False
    )
    ours = render_chat(
        template, messages, continue_final_message=True, add_generation_prompt=False, special_tokens=SPECIAL
    )
    assert ours == expected


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_tools_and_options(oracle: Any, options: dict[str, bool]) -> None:
    expected = oracle.apply_chat_template(
        CALLS, tools=TOOLS, chat_template=TOOLS_TEMPLATE, add_generation_prompt=True, tokenize=False, **options
    )
    ours = render_chat(TOOLS_TEMPLATE, CALLS, tools=TOOLS, options=options)
    assert ours == expected
    assert "Köln" in ours
    assert "skip" not in ours.split("</tool_call>")[1]


def test_arguments_sent_as_json_text_become_objects() -> None:
    def calls(arguments: object) -> list[dict[str, Any]]:
        return [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]

    template = "{{ messages[0].tool_calls[0].function.arguments.city }}"
    assert render_chat(template, calls('{"city": "Köln"}')) == "Köln"
    assert render_chat("{{ messages[0].tool_calls[0].function.arguments }}", calls("{broken")) == "{broken"
    sent = calls('{"city": "Köln"}')
    render_chat(template, sent)
    assert sent == calls('{"city": "Köln"}')


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render_chat("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "image_url"),
        ([{"type": "text"}], "text parts only"),
        (["bare"], "'str'"),
        ([{"type": "text", "text": 3}], "text parts only"),
    ],
)
def test_other_parts_are_refused(content: list[Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        render_chat("", [{"role": "user", "content": "x"}, {"role": "user", "content": content}])
    assert "messages[1].content" in str(caught.value)
    assert caught.value.param == "messages"


def test_what_a_template_refuses_reaches_the_client() -> None:
    with pytest.raises(RequestError, match="Unknown role robot") as caught:
        render_chat(HEADERS, [{"role": "robot", "content": "x"}], special_tokens=SPECIAL)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ missing.attribute }}", "missing"),
        ("{{ messages[0].content.nope() }}", "nope"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_what_goes_wrong_while_rendering(template: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        render_chat(template, [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__name__ }}",
        "{{ lipsum(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(RequestError):
        render_chat(template, [{"role": "user", "content": "x"}])


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_OUTPUT", 1000)
    for template in (
        "{% for _ in range(99999) %}xxxxxxxx{{ loop.index }}{% endfor %}",
        "{{ 'x' * 100000 }}",
        "{{ 99999 * [0] }}",
        "{{ 10 ** 100000000 }}",
    ):
        with pytest.raises(RequestError, match=r"l(ong|arg)er than 1000"):
            render_chat(template, [{"role": "user", "content": "x"}])
    assert render_chat("{{ 4 * 5000 }}{{ 'ab' * 3 }}", [{"role": "user", "content": "x"}]) == "20000ababab"


def test_requests_that_make_no_sense() -> None:
    chat = [{"role": "user", "content": "x"}]
    with pytest.raises(RequestError, match="no chat template") as caught:
        render_chat(None, chat)
    assert caught.value.code == "no_chat_template"
    with pytest.raises(RequestError, match="may not be empty"):
        render_chat("x", [])
    with pytest.raises(RequestError, match="can't both be true"):
        render_chat("x", chat, continue_final_message=True)
    with pytest.raises(RequestError, match="messages, tools"):
        render_chat("x", chat, options={"messages": [], "tools": []})
    with pytest.raises(RequestError, match=r"messages\[0\]\.role"):
        render_chat("x", [{"content": "x"}])
    with pytest.raises(RequestError, match="last message"):
        render_chat("x", [{"role": "assistant"}], continue_final_message=True, add_generation_prompt=False)
    with pytest.raises(RequestError, match="not possible"):
        render_chat("nothing", chat, continue_final_message=True, add_generation_prompt=False)


def test_the_date_and_loop_controls() -> None:
    text = render_chat(
        "{{ strftime_now('%Y') }}{% for n in range(5) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}",
        [{"role": "user", "content": "x"}],
    )
    assert text.startswith("20")
    assert text.endswith("01")


def test_syntax_errors_name_place_and_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"my\.jinja: chat template, line 2"):
        check_template("fine\n{% for %}", "my.jinja")
    check_template(TOOLS_TEMPLATE, "fine")
