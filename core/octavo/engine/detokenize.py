"""Token ids to text, a few ids at a time, without ever showing half a character.

A decoder looks at neighbours: it joins bytes to characters and drops the space before the first word. So the
new ids are decoded together with some before them (to begin with, the end of the prompt), and what is new is
what that text has gained. Text that ends in U+FFFD may be half a character and waits for the next id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Protocol

_BROKEN: Final = "\ufffd"
_CONTEXT: Final = 6  # prompt ids that the first new ones are decoded with
_WINDOW: Final = 16  # ids decoded at once before the older ones are let go
_PATIENCE: Final = 32  # ids that may wait for a character to become whole
_KEPT: Final = 8  # ids that remain when patience runs out
_UNCERTAIN: Final = 4  # characters that one unfinished character may look like


class Decoder(Protocol):
    """The part of a tokenizer that detokenising needs."""

    @property
    def special_ids(self) -> Collection[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class Detokenizer:
    """The text of one answer. All of ``push`` and ``flush`` together equal the text of all ids at once."""

    __slots__ = ("_boundary", "_decoder", "_prompt", "_skip", "_skipped", "_text", "_whole", "_window", "_written")

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._skipped: Collection[int] = decoder.special_ids if skip_special_tokens else ()
        self._window, self._text = self._tail(prompt_ids)
        self._prompt = self._text  # until the answer has text of its own
        self._written = len(self._text)  # characters of ``_text`` that the caller has
        self._whole = len(self._window)  # ids up to which no character is half
        self._boundary = len(self._window)  # ids that go when the window gets long

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        self._text = self._decoder.decode(self._window, self._skip)
        if self._text.endswith(_BROKEN):
            return self._lose_patience() if len(self._window) - self._whole > _PATIENCE else ""
        new = self._take(len(self._text))
        if len(self._window) >= _WINDOW:
            self._restart(self._window[self._boundary :])
        self._whole = len(self._window)
        return new

    def flush(self) -> str:
        """What is left at the end, broken or not."""
        return self._take(len(self._text))

    def _take(self, end: int) -> str:
        if self._prompt and not self._text.startswith(self._prompt):
            # The prompt ended in half a character, which the answer has completed.
            self._written = _common(self._prompt, self._text)
        start, self._written = self._written, max(self._written, end)
        if end > start:
            self._prompt = ""
        return self._text[start:end]

    def _restart(self, window: list[int]) -> None:
        self._window = window
        self._text = self._decoder.decode(window, self._skip)
        self._written = len(self._text)
        self._boundary = len(window)

    def _lose_patience(self) -> str:
        """These bytes are no UTF-8 at all: show them but for the last, so that waiting costs no more."""
        new = self._take(max(self._written, len(self._text) - _UNCERTAIN))
        self._restart(self._window[-_KEPT:])
        self._written = max(0, len(self._text) - _UNCERTAIN)
        self._whole = 0
        return new

    def _tail(self, prompt_ids: Sequence[int]) -> tuple[list[int], str]:
        """Some ids from the prompt's end, beginning with a whole character if that is possible."""
        window: list[int] = []
        text = ""
        for size in (_CONTEXT, 2 * _CONTEXT, 4 * _CONTEXT):
            window = [token for token in prompt_ids[-size:] if token not in self._skipped]
            text = self._decoder.decode(window, self._skip) if window else ""
            if not text.startswith(_BROKEN):
                break
        return window, text


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
