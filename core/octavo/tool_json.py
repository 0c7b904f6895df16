"""Tool calls written as JSON objects, read while they come: building blocks for tool parsers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from octavo.contracts.tools import Piece

_IN_STRING: Final = re.compile(r'["\\]')
_IN_VALUE: Final = re.compile(r'["{}\[\]]')
_PLAIN_END: Final = re.compile(r"[\s,}\]]")
_SPACE: Final = " \t\r\n"
MOST_HEAD: Final = 65536
"""Characters that a call may have without its arguments; what is longer is no call."""


class NotACall(Exception):
    """What was read so far is not a JSON object with a name."""


class ObjectReader:
    """One object ``{"name": …, "arguments": {…}}``; ``parameters`` is as good, other keys are passed over.

    ``done`` when its closing brace was read. Each character is looked at once.
    """

    def __init__(self, call: int, name: str | None = None) -> None:
        """With ``name`` only the object of arguments is read."""
        self.done = False
        self.name = name
        self.at = 0  # how far the text fed last was read
        self._call = call
        self._alone = name is not None
        self._state, self._key = ("begin", "arguments") if self._alone else ("open", "")
        self._buffer: list[str] = []  # of the string or value being read, where it is not passed on
        self._head = 0
        self._kind = ""  # of the value being read: string, container or plain
        self._depth, self._inside, self._escaped = 0, False, False
        self._early: list[str] = []  # arguments that came before the name
        self._argued = False

    def feed(self, text: str, at: int, pieces: list[Piece]) -> int:
        """Read ``text`` from ``at`` on and append pieces; where reading ended. Raises :class:`NotACall`."""
        while at < len(text) and not self.done:
            self.at = at
            if self._state in ("key", "value"):
                at = self._scan(text, at, pieces)
            else:
                char = text[at]
                at += 1
                if char not in _SPACE:
                    at = self._step(char, at)
        if self.done and self.name is None:
            raise NotACall
        if self.done and not self._argued:
            pieces.append(Piece(call=self._call, arguments="{}"))
        return at

    def _step(self, char: str, at: int) -> int:
        """One character between keys and values; where to go on."""
        state = self._state
        if state == "open" and char == "{":
            self._state = "first"
        elif char == '"' and state in ("first", "next"):
            self._begin("key", "string")
            self._inside = True
        elif char == "}" and state in ("first", "after"):
            self.done = True
        elif char == ":" and state == "colon":
            self._state = "begin"
        elif char == "," and state == "after":
            self._state = "next"
        elif state == "begin":
            self._begin("value", "string" if char == '"' else "container" if char in "{[" else "plain")
            return at - 1  # the value's own first character
        else:
            raise NotACall
        return at

    def _begin(self, state: str, kind: str) -> None:
        self._state, self._kind = state, kind
        self._buffer, self._depth, self._inside, self._escaped = [], 0, False, False

    def _scan(self, text: str, at: int, pieces: list[Piece]) -> int:
        """On in a key or a value."""
        end, complete = self._reach(text, at)
        part = text[at:end]
        streams = self._state == "value" and self._kind == "container" and self._is_arguments
        if streams:
            self._argued = True
            self._pass_on(part, pieces)
        else:
            self._head += len(part)
            if self._head > MOST_HEAD and not self._is_arguments:
                raise NotACall
            self._buffer.append(part)
        if complete:
            self._complete(pieces, streams)
        return end

    def _reach(self, text: str, at: int) -> tuple[int, bool]:
        """Where this key or value ends in ``text``, if it does."""
        if self._kind == "plain":
            found = _PLAIN_END.search(text, at)
            return (found.start(), True) if found else (len(text), False)
        while at < len(text):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            found = (_IN_STRING if self._inside else _IN_VALUE).search(text, at)
            if found is None:
                return len(text), False
            char, at = found.group(), found.end()
            if char == "\\":
                self._escaped = True
            elif char == '"':
                self._inside = not self._inside
            else:
                self._depth += 1 if char in "{[" else -1
            if not self._inside and not self._depth:
                return at, True
        return at, False

    def _complete(self, pieces: list[Piece], streamed: bool) -> None:
        raw = "".join(self._buffer)
        if self._state == "key":
            self._key, self._state = str(_loads('"' + raw)), "colon"
            return
        self._state, self.done = "after", self._alone
        if streamed:
            return
        if self._key == "name" and self.name is None:
            name = _loads(raw)
            if not isinstance(name, str) or not name:
                raise NotACall
            self.name = name
            pieces.append(Piece(call=self._call, name=name))
            pieces += [Piece(call=self._call, arguments=part) for part in self._early]
        elif self._is_arguments and not self._argued:
            value = _loads(raw)  # arguments as JSON in a string, as OpenAI's own API has them, or none
            self._argued = True
            self._pass_on(value if isinstance(value, str) and value.strip() else "{}", pieces)

    def _pass_on(self, arguments: str, pieces: list[Piece]) -> None:
        if self.name is None:
            self._early.append(arguments)
        else:
            pieces.append(Piece(call=self._call, arguments=arguments))

    @property
    def _is_arguments(self) -> bool:
        return self._key in ("arguments", "parameters")


class CallsReader:
    """One call object, or several: as a JSON list, or one after the other with ``,`` or ``;`` between them.

    ``calls`` counts them from ``first`` on; ``found`` is set by the first name. ``done`` when a list was closed,
    ``broken`` when something was no call: what was read of that in earlier texts is in ``held``.
    """

    def __init__(self, first: int = 0) -> None:
        self.calls = first
        self.done = self.broken = self.found = False
        self._raw: list[str] = []  # read since the last call, while it is not known whether it is one
        self._list = self._begun = False
        self._reader: ObjectReader | None = None

    @property
    def held(self) -> str:
        """What was read and did not become a piece."""
        return "".join(self._raw)

    @property
    def between(self) -> bool:
        """Whether no object is open, and no list."""
        return self._reader is None and (self.done or not self._list)

    def feed(self, text: str, at: int = 0) -> tuple[list[Piece], int]:
        """Read ``text`` from ``at`` on; the pieces, and where reading ended: behind the last object or list, or
        where what is no call begins."""
        pieces: list[Piece] = []
        start = at  # of what is not known to be a call
        while at < len(text) and not self.done:
            if self._reader is None:
                char = text[at]
                if char == "{":
                    self._reader, self._begun = ObjectReader(self.calls), True
                elif char == "[" and not self._begun:
                    self._list = self._begun = True
                    at += 1
                elif char in " \t\r\n,;" or (char == "]" and self._list):
                    self.done = char == "]"
                    at += 1
                else:
                    self.broken = self._list
                    break
                continue
            try:
                at = self._reader.feed(text, at, pieces)
            except NotACall:
                named = self._reader.name is not None
                self.broken, self.found, self.calls = True, self.found or named, self.calls + named
                return pieces, start if self._reader.name is None else self._reader.at
            if self._reader.name is not None:
                self._raw, start, self.found = [], at, True
            if self._reader.done:
                self._reader = None
                self.calls += 1
        if self.broken:
            return pieces, start
        self._raw.append(text[start:at])
        return pieces, at


def split_held(text: str, marks: Sequence[str]) -> tuple[str, str]:
    """``text`` without its longest end that may be the beginning of one of ``marks``, and that end."""
    longest = max(map(len, marks), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        end = text[-size:]
        if any(len(mark) > size and mark.startswith(end) for mark in marks):
            return text[:-size], end
    return text, ""


def _loads(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise NotACall from None
