"""Mistral's calls: ``[TOOL_CALLS]`` and a JSON list, or, from tokenizer version 11 on, for each call
``[TOOL_CALLS]name[ARGS]{…}`` (with ``[CALL_ID]…`` between, or without ``[ARGS]``)."""

from __future__ import annotations

from typing import Final

from octavo.contracts.tools import Piece
from octavo.tool_json import CallsReader, NotACall, ObjectReader, split_held

_MARK: Final = "[TOOL_CALLS]"
_LONGEST_NAME: Final = 512


class MistralCalls:
    """A :class:`octavo.contracts.tools.ToolParser`."""

    def __init__(self) -> None:
        self._calls = 0
        self._state = "text"
        self._pending = self._space = self._name = ""
        self._mark = _MARK  # with the white space behind it
        self._list: CallsReader | None = None
        self._object: ObjectReader | None = None

    def feed(self, text: str) -> list[Piece]:
        """See the contract."""
        text, self._pending = self._pending + text, ""
        pieces: list[Piece] = []
        at = 0
        step = {"text": self._say, "mark": self._choose, "name": self._read_name, "list": self._read_list}
        while at < len(text):
            at = step.get(self._state, self._read_object)(text, at, pieces)
        return pieces

    def end(self) -> list[Piece]:
        """See the contract."""
        rest = self._pending
        if self._state == "mark":
            rest = self._mark + rest
        elif self._state == "name":
            rest = self._mark + self._name
        elif self._list is not None:
            rest = "" if self._list.found else self._mark + self._list.held
        called = self._calls > 0 or (self._list is not None and self._list.found)
        text = self._space + rest
        return [Piece(text)] if text and not (called and not text.strip()) else []

    def _say(self, text: str, at: int, pieces: list[Piece]) -> int:
        place = text.find(_MARK, at)
        if place < 0:
            shown, self._pending = split_held(text[at:], (_MARK,))
            self._show(shown, pieces)
            return len(text)
        self._show(text[at:place], pieces)
        self._state, self._mark = "mark", _MARK
        return place + len(_MARK)

    def _choose(self, text: str, at: int, pieces: list[Piece]) -> int:
        rest = text[at:].lstrip()
        self._mark += text[at : len(text) - len(rest)]
        if len(self._mark) > _LONGEST_NAME or rest.startswith(_MARK):
            self._state = "text"
            self._show(self._mark, pieces)
        elif rest and _MARK.startswith(rest):
            self._pending = rest
            return len(text)
        elif rest and rest[0] in "[{":
            self._state, self._list = "list", CallsReader(self._calls)
        elif rest:
            self._state, self._name = "name", ""
        return len(text) - len(rest)

    def _read_name(self, text: str, at: int, pieces: list[Piece]) -> int:
        place = text.find("{", at)
        self._name += text[at : place if place >= 0 else len(text)]
        if place < 0 and len(self._name) < _LONGEST_NAME:
            return len(text)
        name = self._name.partition("[ARGS]")[0].partition("[CALL_ID]")[0].strip()
        if place < 0 or not name or any(char.isspace() for char in name):
            self._state = "text"
            self._show(self._mark + self._name, pieces)
            return place if place >= 0 else len(text)
        pieces.append(Piece(call=self._calls, name=name))
        self._object, self._state, self._space = ObjectReader(self._calls, name), "object", ""
        self._calls += 1
        return place

    def _read_object(self, text: str, at: int, pieces: list[Piece]) -> int:
        assert self._object is not None
        try:
            at = self._object.feed(text, at, pieces)
        except NotACall:
            at, self._object = self._object.at, None
        if self._object is None or self._object.done:
            self._state, self._object = "text", None
        return at

    def _read_list(self, text: str, at: int, pieces: list[Piece]) -> int:
        assert self._list is not None
        found, at = self._list.feed(text, at)
        pieces += found
        if self._list.broken or self._list.done or at < len(text):
            if not self._list.found:
                self._show(self._mark + self._list.held, pieces)
            self._calls, self._list, self._state = self._list.calls, None, "text"
        return at

    def _show(self, text: str, pieces: list[Piece]) -> None:
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            pieces.append(Piece(shown))
