"""Calls as a list of Python calls, ``[weather(city="Ulm", days=2), now()]``, which is then the whole answer."""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Final

from octavo.contracts.tools import Piece

_OPENINGS: Final = ("<|python_start|>", "<|python_tag|>")
_SPECIAL: Final = re.compile(r"[\"'()\[\]{}]")
_LONGEST_CALL: Final = 1 << 20


class PythonicCalls:
    """A :class:`octavo.contracts.tools.ToolParser`. Each call is parsed once, when its bracket is closed."""

    def __init__(self) -> None:
        self._state = "start"  # start, calls, behind, text
        self._raw: list[str] = []  # read, and not yet a piece
        self._size = 0
        self._call: list[str] = []
        self._depth, self._quote, self._escaped = 0, "", False
        self._calls = 0

    def feed(self, text: str) -> list[Piece]:
        """See the contract."""
        pieces: list[Piece] = []
        if self._state == "start":
            text = self._begin(text)
        at = 0
        while at < len(text) and self._state == "calls":
            at = self._read(text, at, pieces)
        if self._state == "text" and at < len(text):
            pieces.append(Piece(text[at:]))
        return pieces

    def end(self) -> list[Piece]:
        """See the contract."""
        raw = "".join(self._raw)
        self._raw = []
        return [Piece(raw)] if raw.strip() and not (self._calls and raw.strip() in "[,") else []

    def _begin(self, text: str) -> str:
        """Decide by the first characters; what is to be read on."""
        if not text.strip():
            self._raw.append(text)
            return ""
        whole = "".join(self._raw) + text
        rest = whole.lstrip()
        for mark in _OPENINGS:
            if rest.startswith(mark):
                rest = rest[len(mark) :].lstrip()
            elif rest and mark.startswith(rest):
                rest = ""
        if not rest:
            self._raw = [whole]
            return ""
        if rest[0] != "[":
            self._raw, self._state = [], "text"
            return whole
        self._raw, self._state = [whole[: len(whole) - len(rest) + 1]], "calls"
        return rest[1:]

    def _read(self, text: str, at: int, pieces: list[Piece]) -> int:
        """Up to the end of a call, of the list, or of the text."""
        start = at
        while at < len(text):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            if self._quote:
                found = re.compile(r"\\|" + self._quote).search(text, at)
            else:
                found = _SPECIAL.search(text, at)
            if found is None:
                at = len(text)
                break
            at = found.end()
            if self._close(found.group(), text[start:at], pieces):
                return at if self._state != "text" else self._give_up(text, start, at, pieces)
        self._keep(text[start:at])
        return self._give_up(text, at, at, pieces) if self._size > _LONGEST_CALL else at

    def _close(self, char: str, part: str, pieces: list[Piece]) -> bool:
        """Take one special character; whether a call or the list ends with it, or is none."""
        if char == "\\":
            self._escaped = True
        elif self._quote:
            self._quote = ""
        elif char in "\"'":
            self._quote = char
        elif char in "([{":
            self._depth += 1
        elif char == "]" and not self._depth:
            rest = "".join([*self._call, part[:-1]]).strip(" ,\n")
            self._state = "behind" if self._calls and not rest else "text"
            if self._state == "behind":  # what comes after the list is dropped: marks that close it
                self._raw, self._call = [], []
            return True
        else:
            self._depth -= 1
            if char == ")" and not self._depth:
                return self._finish("".join([*self._call, part]).strip(" ,\n\t"), pieces)
        return False

    def _finish(self, source: str, pieces: list[Piece]) -> bool:
        try:
            name, arguments = parse_call(source)
        except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError):
            self._state = "text"
            return True
        pieces += [Piece(call=self._calls, name=name), Piece(call=self._calls, arguments=arguments)]
        self._calls += 1
        self._raw, self._call, self._size = [], [], 0
        return True

    def _keep(self, part: str) -> None:
        self._raw.append(part)
        self._call.append(part)
        self._size += len(part)

    def _give_up(self, text: str, start: int, at: int, pieces: list[Piece]) -> int:
        """What was read is text, and so is the rest."""
        self._state = "text"
        pieces.append(Piece("".join([*self._raw, text[start:at]])))
        self._raw = []
        return at


def parse_call(source: str) -> tuple[str, str]:
    """``f(a=1)`` to the name and the arguments as JSON. Only literals; raises :class:`ValueError` for all else."""
    tree = ast.parse(source, mode="eval").body
    if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise ValueError("no call with named arguments")
    arguments = {str(keyword.arg): _literal(keyword.value) for keyword in tree.keywords}
    return ast.unparse(tree.func), json.dumps(arguments, ensure_ascii=False)


def _literal(node: ast.expr) -> Any:
    """As :func:`ast.literal_eval`, and JSON's ``true``, ``false`` and ``null``."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None, "none": None}[node.id.lower()]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(_literal(key)): _literal(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)
