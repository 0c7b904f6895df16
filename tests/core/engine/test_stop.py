"""Stop strings, against a search over the whole text, character by character."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.stop import StopStrings

letters = st.text("abé", max_size=40)
stops = st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=4)


@st.composite
def cut_texts(draw):
    text = draw(letters)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def whole(text, stops, include, unarmed=0):
    """What should be shown of ``text``: up to the stop string that is complete first, the longest of those."""
    for end in range(unarmed + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[:end] if include else text[: end - len(stop)], stop
    return text, None


def streamed(pieces, stops, include, unarmed=0):
    watcher, shown, seen = StopStrings(stops, include), [], 0
    for piece in pieces:
        text, found = watcher.push(piece, armed=seen >= unarmed)
        seen += len(piece)
        shown.append(text)
        if found is not None:
            return shown, found
    return [*shown, watcher.flush()], None


@given(cut_texts(), stops, st.booleans())
def test_any_cutting_gives_the_same(pieces, stops, include):
    shown, found = streamed(pieces, stops, include)
    assert ("".join(shown), found) == whole("".join(pieces), stops, include)


@given(cut_texts(), stops)
def test_nothing_shown_is_taken_back(pieces, stops):
    """At each moment, what was shown is the beginning of what is right for any continuation."""
    watcher, shown, text = StopStrings(stops, False), "", ""
    for piece in pieces:
        text += piece
        new, found = watcher.push(piece)
        shown += new
        if found is not None:
            return
        for stop in stops:
            for length in range(1, len(stop)):
                if text.endswith(stop[:length]):
                    assert len(shown) <= len(text) - length
        held = len(text) - len(shown)
        assert held == 0 or any(stop.startswith(text[-held:]) for stop in stops)


@given(letters, stops, st.integers(0, 10))
def test_stop_strings_count_only_behind_min_tokens(text, stops, unarmed):
    shown, found = streamed(list(text), stops, False, unarmed)
    assert ("".join(shown), found) == whole(text, stops, False, unarmed)


def test_no_stop_strings_hold_nothing_back():
    assert StopStrings((), False).push("anything") == ("anything", None)


def test_long_repetitive_stop_string_is_cheap():
    stop = "a" * 1000 + "b"
    watcher = StopStrings([stop], False)
    shown = "".join(watcher.push("a")[0] for _ in range(20_000))
    assert len(shown) == 20_000 - 1000
    assert watcher.push("b") == ("", stop)
