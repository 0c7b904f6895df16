"""Calls as JSON between marks, or at the very beginning of an answer: most models' way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo.contracts.tools import Piece
from octavo.tool_json import CallsReader, split_held

_MOST_SPACE: Final = 256  # held back, in case a call follows


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """``starts`` of a call or list of calls, and its ``end``, if it has one. ``bare``: characters that begin a call
    where an answer begins with them."""

    starts: tuple[str, ...]
    end: str = ""
    bare: str = ""


class MarkedJson:
    """A :class:`octavo.contracts.tools.ToolParser`."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._begun = not marks.bare  # whether anything but white space was read
        self._reader: CallsReader | None = None
        self._start = ""  # the mark that the reader stands behind
        self._calls = 0
        self._pending = self._space = ""

    def feed(self, text: str) -> list[Piece]:
        """See the contract."""
        text, self._pending = self._pending + text, ""
        pieces: list[Piece] = []
        at = 0
        while at < len(text):
            at = self._say(text, at, pieces) if self._reader is None else self._read(text, at, pieces)
        return pieces

    def end(self) -> list[Piece]:
        """See the contract."""
        rest, self._pending = self._pending, ""
        called = self._calls > 0
        if self._reader is not None:
            called |= self._reader.found
            rest = "" if self._reader.found else self._start + self._reader.held + rest
        text = self._space + rest
        if called and not text.strip():
            text = ""
        self._reader, self._space = None, ""
        return [Piece(text)] if text else []

    def _say(self, text: str, at: int, pieces: list[Piece]) -> int:
        if not self._begun:
            stripped = text[at:].lstrip()
            if not stripped:
                self._space += text[at:]
                return len(text)
            self._begun = True
            if stripped[0] in self._marks.bare:
                self._open("")
                return len(text) - len(stripped)
        found = [(place, -len(mark), mark) for mark in self._marks.starts if (place := text.find(mark, at)) >= 0]
        if not found:
            shown, self._pending = split_held(text[at:], self._marks.starts)
            self._show(shown, pieces)
            return len(text)
        place, _, mark = min(found)
        self._show(text[at:place], pieces)
        self._open(mark)
        return place + len(mark)

    def _open(self, mark: str) -> None:
        self._start, self._reader = mark, CallsReader(self._calls)

    def _read(self, text: str, at: int, pieces: list[Piece]) -> int:
        reader = self._reader
        assert reader is not None
        found, at = reader.feed(text, at)
        if found:
            self._space = ""
        pieces += found
        if reader.broken:
            return self._close(text, at, pieces, reader.held)
        if at == len(text):
            return at
        end = self._marks.end
        if end and text.startswith(end, at):
            return self._close(text, at + len(end), pieces, reader.held + end)
        if end and end.startswith(text[at:]):
            self._pending = text[at:]
            return len(text)
        return self._close(text, at, pieces, reader.held)

    def _close(self, text: str, at: int, pieces: list[Piece], raw: str) -> int:
        """Behind the calls; if there were none, all of it was text."""
        assert self._reader is not None
        found, self._calls, self._reader = self._reader.found, self._reader.calls, None
        if not found:
            self._show(self._start + raw, pieces)
        elif self._marks.end and text.startswith(self._marks.end, at):
            at += len(self._marks.end)
        return at

    def _show(self, text: str, pieces: list[Piece]) -> None:
        """White space waits for what follows it: before a call it is dropped."""
        text = self._space + text
        shown = text.rstrip() if len(text) - len(text.rstrip()) <= _MOST_SPACE else text
        self._space = text[len(shown) :]
        if shown:
            pieces.append(Piece(shown))
