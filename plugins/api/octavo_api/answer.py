"""What chat and completion answers have in common: their head, their token counts, their collected choices."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from starlette.responses import Response

from octavo import __version__
from octavo.contracts.api import Delta, PromptInfo, TokenLogprob
from octavo_api.reading import PLAIN, Event, Reader, Reading

FINGERPRINT: Final = f"octavo-{__version__}"


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that every object of one answer begins with. ``id`` is ours, never the client's."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, prefix: str, model: str) -> Head:
        """With a fresh id, such as ``chatcmpl-…``."""
        return cls(prefix + secrets.token_hex(14), model, int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        """As the beginning of a JSON object."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


@dataclass(slots=True)
class Usage:
    """Token counts. A prompt counts once, however many answers it gets."""

    report_cached: bool
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int | None = None  # tokens of it, where the model has any

    def think(self, tokens: int) -> None:
        """Count tokens of reasoning, which are among the others."""
        self.reasoning = (self.reasoning or 0) + tokens

    def add(self, delta: Delta) -> None:
        """Count a delta."""
        self.completion += len(delta.token_ids)
        if delta.prompt is not None:
            self.prompt += len(delta.prompt.token_ids)
            self.cached += delta.prompt.cached_tokens

    def fields(self) -> dict[str, Any]:
        """The ``usage`` object."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }
        if self.reasoning is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning}
        if self.report_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached}
        return usage


@dataclass(slots=True)
class Choice:
    """One answer, collected; ``events`` is what its text is made of."""

    reader: Reader = field(default_factory=PLAIN.reader)
    events: list[Event] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.texts.append(delta.text)
        self.events += self.reader.feed(delta.text)
        if delta.finish_reason is not None:
            self.events += self.reader.end()
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


@dataclass(slots=True)
class Collected:
    """All answers to all prompts of one request; choices are numbered ``prompt * n + index``."""

    n: int
    prompts: list[PromptInfo | None]
    choices: list[Choice]
    usage: Usage

    @classmethod
    def empty(cls, prompts: int, n: int, usage: Usage, reading: Reading = PLAIN) -> Collected:
        """Before the first delta."""
        return cls(n, [None] * prompts, [Choice(reading.reader()) for _ in range(prompts * n)], usage)

    def add(self, prompt: int, delta: Delta) -> None:
        """Append a delta."""
        self.usage.add(delta)
        choice = self.choices[prompt * self.n + delta.index]
        if choice.reader.thinking:
            self.usage.think(len(delta.token_ids))
        choice.add(delta)
        if delta.prompt is not None:
            self.prompts[prompt] = delta.prompt


def json_response(value: object, status: int = 200) -> Response:
    """``value`` as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
