"""Plugin `tools`: the ways in which families of models write tool calls. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from octavo.contracts.tools import ToolParser
from octavo.hookspecs import hookimpl
from octavo.records import ToolParserRecord
from octavo_tools.marked import MarkedJson, Marks
from octavo_tools.mistral import MistralCalls
from octavo_tools.pythonic import PythonicCalls

OCTAVO_API = (1, 0)
Tools = Sequence[Any]


def _marked(marks: Marks) -> Callable[[Tools], ToolParser]:
    return lambda tools: MarkedJson(marks)


def _having(*words: str) -> Callable[[str], bool]:
    return lambda template: any(word in template for word in words)


_JSON: Final = (
    (
        "hermes",
        "Hermes and Qwen: <tool_call>{…}</tool_call>.",
        Marks(starts=("<tool_call>",), end="</tool_call>"),
        ("<tool_call>",),
        False,
    ),
    (
        "llama3_json",
        'Llama 3: the answer is {"name": …, "parameters": …}, or several between semicolons.',
        Marks(starts=("<|python_tag|>",), bare="{"),
        ('"parameters": dictionary of argument name',),
        True,
    ),
    (
        "granite",
        "Granite: <|tool_call|> or <tool_call>, and a list.",
        Marks(starts=("<|tool_call|>", "<tool_call>")),
        ("<|tool_call|>",),
        True,
    ),
    (
        "jamba",
        "Jamba: <tool_calls>[…]</tool_calls>.",
        Marks(starts=("<tool_calls>",), end="</tool_calls>"),
        ("<tool_calls>",),
        False,
    ),
    ("phi4_mini", "Phi-4-mini: functools[…].", Marks(starts=("functools",)), ("functools[",), False),
)  # fmt: skip


@hookimpl
def octavo_tool_parsers() -> Iterable[ToolParserRecord]:
    """Contribute one record a way."""
    for rank, (name, summary, marks, words, special) in enumerate(_JSON):
        yield ToolParserRecord(
            name=name,
            summary=summary,
            rank=rank,
            build=_marked(marks),
            detect=_having(*words),
            special_tokens=special,
        )
    yield ToolParserRecord(
        name="mistral",
        summary="Mistral: [TOOL_CALLS] and a list, or names with [ARGS].",
        rank=10,
        build=lambda tools: MistralCalls(),
        detect=_having("[TOOL_CALLS]"),
        special_tokens=True,
        id_length=9,
    )
    yield ToolParserRecord(
        name="pythonic",
        summary="Llama 3.2 and 4, and others: [f(a=1), g()].",
        rank=11,
        build=lambda tools: PythonicCalls(),
        detect=_having("<|python_start|>", "[func_name1(", "[func1("),
        special_tokens=True,
    )
