"""Stop strings over streamed text.

Text that may turn out to be the beginning of a stop string is held back. Of several matches the one that is
complete first wins, and of those the longest: so the answer does not depend on how the text was cut up.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one answer's text for ``stops``; ``include`` keeps the stop string in the text."""

    __slots__ = ("_firsts", "_held", "_include", "_matchers")

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        longest_first = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._matchers = [_Matcher(stop) for stop in longest_first]
        self._firsts = {stop[0] for stop in longest_first}
        self._include = include
        self._held = ""

    def push(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Add text; get what may be shown and the stop string that was found, if any.

        With ``armed=False`` a stop string that ends in ``text`` does not count, but one that begins there
        and ends later will.
        """
        if not self._held and self._firsts.isdisjoint(text):
            return text, None
        end, found = len(text) + 1, ""
        for matcher in self._matchers:
            here = matcher.advance(text, armed)
            if 0 <= here < end:
                end, found = here, matcher.stop
        buffer = self._held + text
        if found:
            end += len(self._held)
            self._held = ""
            return buffer[: end if self._include else end - len(found)], found
        cut = len(buffer) - max(matcher.matched for matcher in self._matchers)
        self._held = buffer[cut:]
        return buffer[:cut], None

    def flush(self) -> str:
        """The text that was held back: the answer is over, so it begins no stop string."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """Knuth, Morris and Pratt's automaton: constant time a character, whatever the strings look like."""

    __slots__ = ("_fallback", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # characters at the end of the text so far that begin ``stop``
        self._fallback = _fallbacks(stop)

    def advance(self, text: str, armed: bool) -> int:
        """The index behind the first match that ends in ``text``, or -1. Unarmed, matches are passed over."""
        stop, fallback, matched = self.stop, self._fallback, self.matched
        for index, character in enumerate(text):
            while matched and stop[matched] != character:
                matched = fallback[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                if armed:
                    return index + 1
                matched = fallback[matched - 1]
        self.matched = matched
        return -1


def _fallbacks(stop: str) -> list[int]:
    """For each beginning of ``stop``: the length of the longest shorter beginning that it ends in."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = table[length - 1]
        if stop[length] == stop[index]:
            length += 1
        table[index] = length
    return table
