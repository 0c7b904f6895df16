"""Reasoning: what a model says between marks before its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from octavo.tool_json import split_held


@dataclass(frozen=True, slots=True)
class Tags:
    """The marks around a reasoning; ``special``: they may be special tokens."""

    name: str
    start: str
    end: str
    special: bool = False


TAGS: Final = (
    Tags("think", "<think>", "</think>"),
    Tags("magistral", "[THINK]", "[/THINK]", special=True),
    Tags("seed", "<seed:think>", "</seed:think>"),
)
"""The marks of DeepSeek-R1, Qwen3 and their like; of Magistral; of Seed-OSS."""


class Part(NamedTuple):
    """A piece of an answer: of its reasoning, or of what is said behind it."""

    reasoning: str = ""
    text: str = ""


class ReasoningSplitter:
    """Divides one answer, in linear time. ``inside``: the prompt ended with the opening mark already."""

    def __init__(self, tags: Tags, inside: bool) -> None:
        self._tags = tags
        self._state = "inside" if inside else "before"
        self._held = ""
        self._fresh = inside  # nothing was said on this side of the last mark

    @property
    def thinking(self) -> bool:
        """Whether the reasoning has begun and not ended."""
        return self._state == "inside"

    def feed(self, text: str) -> list[Part]:
        """The answer goes on with ``text``."""
        text, self._held = self._held + text, ""
        parts: list[Part] = []
        if self._state == "before":
            text = self._begin(text)
        if self._state == "inside":
            text = self._think(text, parts)
        if self._state == "behind" and text:
            text = text.lstrip() if self._fresh else text  # models leave empty lines behind the mark
            self._fresh = self._fresh and not text
            if text:
                parts.append(Part(text=text))
        return parts

    def end(self) -> list[Part]:
        """Everything held back."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Part(reasoning=held) if self._state == "inside" else Part(text=held)]

    def _begin(self, text: str) -> str:
        """Whether the answer begins with the opening mark; what is to be read on."""
        said, start = text.lstrip(), self._tags.start
        if said.startswith(start):
            self._state, self._fresh = "inside", True
            return said[len(start) :]
        if start.startswith(said):
            self._held = text
            return ""
        self._state = "behind"
        return text

    def _think(self, text: str, parts: list[Part]) -> str:
        if self._fresh:
            text = text.lstrip()
            if not text:
                return ""
        self._fresh = False
        thought, mark, rest = text.partition(self._tags.end)
        if not mark:
            thought, self._held = split_held(text, (self._tags.end,))
        if thought:
            parts.append(Part(reasoning=thought))
        if mark:
            self._state, self._fresh = "behind", True
        return rest
