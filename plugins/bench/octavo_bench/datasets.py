"""Requests from files: conversations in ShareGPT's format, and traces of a service."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from octavo.errors import ConfigError
from octavo_bench.sizes import Job, Size

# What others leave out of this data set too: hardly any text, or more than chat models once took.
_SHORTEST: Final = 4
_LONGEST_PROMPT: Final = 1024
_LONGEST: Final = 2048
_CHARACTERS_PER_TOKEN: Final = 4


def sharegpt_jobs(
    path: str, count: int, output: int | None, seed: int, encode: Callable[[str], list[int]] | None
) -> list[Job]:
    """First turns of ``count`` conversations, drawn by ``seed``; the answer as long as the one in the file, or
    ``output`` tokens. Texts that ``encode`` turns to token ids; without it they stay text and a token is taken
    for four characters. Shorter than 4 tokens, prompts above 1,024 and sums above 2,048 are left out.

    Raises :class:`ConfigError` when the file is wrong or holds too few.
    """
    pairs = _pairs(path)
    random.Random(seed).shuffle(pairs)
    jobs: list[Job] = []
    for prompt, answer in pairs:
        if len(jobs) == count:
            break
        ids = encode(prompt) if encode else None
        size = len(ids) if ids is not None else _estimate(prompt)
        wanted = output or (len(encode(answer)) if encode else _estimate(answer))
        if min(size, wanted) >= _SHORTEST and size <= _LONGEST_PROMPT and size + wanted <= _LONGEST:
            jobs.append(Job(prompt if ids is None else ids, wanted))
    if len(jobs) < count:
        raise ConfigError(f"{path}: {count} conversations were asked for; {len(jobs)} of {len(pairs)} are usable.")
    return jobs


def trace_sizes(path: str, count: int | None) -> list[Size]:
    """The first ``count`` requests of a trace (all without): JSON lines with ``timestamp`` in seconds and tokens
    ``input`` and ``output`` (or ``input_length`` and ``output_length``), times from the first request's.

    Raises :class:`ConfigError` naming the line.
    """
    rows = [
        _row(line, f"{path}, line {number}")
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]
    if not rows or (count is not None and count > len(rows)):
        raise ConfigError(f"{path}: holds {len(rows)} requests; {count or 1} were asked for.")
    rows = sorted(rows, key=lambda size: size.at)[:count]
    return [Size(size.input, size.output, size.at - rows[0].at) for size in rows]


def _row(line: str, where: str) -> Size:
    try:
        row = json.loads(line)
        tokens = [row[name] if name in row else row[f"{name}_length"] for name in ("input", "output")]
        at = float(row["timestamp"])
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f'{where}: should look like {{"timestamp": 0.5, "input": 512, "output": 64}}.') from None
    if not all(isinstance(number, int) and number >= 1 for number in tokens) or not math.isfinite(at):
        raise ConfigError(f"{where}: input and output are tokens, at least 1, and timestamp is in seconds.")
    return Size(tokens[0], tokens[1], at)


def _pairs(path: str) -> list[tuple[str, str]]:
    try:
        items: Any = json.loads(_text(path))
        found = [_pair(item) for item in items]
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            f'{path}: should be a JSON list of {{"conversations": [{{"from": …, "value": …}}, …]}}.'
        ) from None
    return [pair for pair in found if pair is not None]


def _pair(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first question and its answer."""
    turns = item.get("conversations") or item.get("conversation") or []
    texts = [turn.get("value") for turn in turns[:2]]
    return (texts[0], texts[1]) if len(texts) == 2 and all(isinstance(text, str) for text in texts) else None


def _estimate(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def _text(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--path {path}: {error}.") from None
