"""How an answer is read: its reasoning, its text, its tool calls. Decided once a request; one reader a choice."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from octavo.contracts.tools import Piece, ToolParser
from octavo.tool_json import CallsReader
from octavo_api.reasoning import Part, ReasoningSplitter, Tags

_ID_LENGTH: Final = 24


class Event(NamedTuple):
    """A piece of text, of reasoning, or of a tool call: its name first, then fragments of its arguments."""

    text: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """``tags`` of the reasoning, if the model has one; ``inside`` where the prompt has opened it. ``parser`` makes
    what reads tool calls, if there may be any; ``named``: one was forced by its name. ``id_length`` of calls."""

    tags: Tags | None = None
    inside: bool = False
    show_reasoning: bool = True
    parser: Callable[[], ToolParser] | None = None
    named: bool = False
    parallel: bool = True
    id_length: int | None = None

    def reader(self) -> Reader:
        """For one choice."""
        return Reader(self)

    def call_id(self) -> str:
        """A new id. Some templates insist on nine letters and digits."""
        if self.id_length is not None:
            return secrets.token_hex(self.id_length)[: self.id_length]
        return f"call_{secrets.token_hex(_ID_LENGTH // 2)}"

    def finish_reason(self, reason: str, called: bool) -> str:
        """What a client is told: an answer that ended by itself with calls ended because of them."""
        return "tool_calls" if called and reason == "stop" and not self.named else reason


PLAIN: Final = Reading()


class Reader:
    """Reads one choice. ``called``: a tool call has begun."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._splitter = None if reading.tags is None else ReasoningSplitter(reading.tags, reading.inside)
        self._parser = None if reading.parser is None else reading.parser()
        self.called = False

    @property
    def thinking(self) -> bool:
        """Whether the answer is in the middle of its reasoning."""
        return self._splitter is not None and self._splitter.thinking

    def feed(self, text: str) -> list[Event]:
        """The answer goes on with ``text``."""
        if not text:
            return []
        if self._splitter is None:
            return self._said(text)
        return self._parts(self._splitter.feed(text))

    def end(self) -> list[Event]:
        """The answer has ended."""
        events = self._parts(self._splitter.end()) if self._splitter is not None else []
        if self._parser is not None:
            events += self._pieces(self._parser.end())
        return events

    def _parts(self, parts: Iterable[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if part.reasoning and self._reading.show_reasoning:
                events.append(Event(reasoning=part.reasoning))
            if part.text:
                events += self._said(part.text)
        return events

    def _said(self, text: str) -> list[Event]:
        return [Event(text)] if self._parser is None else self._pieces(self._parser.feed(text))

    def _pieces(self, pieces: Iterable[Piece]) -> list[Event]:
        events = []
        for piece in pieces:
            if piece.call is None:
                events.append(Event(piece.text))
            elif piece.call == 0 or self._reading.parallel:
                self.called = True
                events.append(Event("", "", piece.call, piece.name, piece.arguments))
        return events


class NamedCall:
    """The whole answer is the arguments of one function. A :class:`octavo.contracts.tools.ToolParser`."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> list[Piece]:
        """See the contract."""
        name, self._name = self._name, None
        pieces = [Piece(call=0, arguments=text)]
        return pieces if name is None else [Piece(call=0, name=name), *pieces]

    def end(self) -> list[Piece]:
        """See the contract."""
        return []


class RequiredCalls:
    """The whole answer is a JSON list of calls. A :class:`octavo.contracts.tools.ToolParser`."""

    def __init__(self) -> None:
        self._calls = CallsReader()

    def feed(self, text: str) -> list[Piece]:
        """See the contract."""
        pieces, at = ([], 0) if self._calls.broken else self._calls.feed(text)
        return [*pieces, Piece(text[at:])] if self._calls.broken else pieces

    def end(self) -> list[Piece]:
        """See the contract. Cut short, the list may not have come to its first call."""
        held = "" if self._calls.found else self._calls.held
        return [Piece(held)] if held else []
