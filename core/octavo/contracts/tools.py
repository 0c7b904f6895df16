"""The tool-parser slot: an answer's text, as it comes, divided into what is said and what is called."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """A piece of an answer: ``text`` to show, or something of call number ``call``: first its ``name``, alone, then
    fragments of its ``arguments``, which together are a JSON object."""

    text: str = ""
    call: int | None = None
    name: str | None = None
    arguments: str = ""


class ToolParser(Protocol):
    """Reads one answer, in time linear in its length. What turns out to be no call is text, marks and all."""

    def feed(self, text: str) -> list[Piece]:
        """The answer goes on with ``text``. A mark may come in parts: what may be the beginning of one is held
        back."""
        ...

    def end(self) -> list[Piece]:
        """The answer has ended, perhaps in the middle of a call: everything held back."""
        ...
