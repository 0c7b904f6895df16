"""The load generator: sends requests to a server at their times and notes when each piece of an answer comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo_bench.figures import Seen
from octavo_bench.http import ExchangeError, Server, fetch, pieces
from octavo_bench.sizes import Job


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Chunk(msgspec.Struct):
    """A chunk of a stream of completions or chat completions, as far as it is looked at."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class Asking:
    """How requests are put. ``chat``: to ``/chat/completions``, prompts as user messages. ``fields`` go into
    every body, over what stands there."""

    model: str
    chat: bool = False
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout: float = 600.0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """After the server's base."""
        return "/chat/completions" if self.chat else "/completions"

    def body(self, job: Job) -> bytes:
        """The request for one job."""
        prompt = {"messages": [{"role": "user", "content": job.prompt}]} if self.chat else {"prompt": job.prompt}
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        body = {
            "model": self.model,
            **prompt,
            "max_tokens": job.output,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **eos,
            **self.fields,
        }
        return json.dumps(body).encode()


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds at which ``count`` requests are sent, ``rate`` a second on average; the first at once.

    Gaps are drawn from a gamma distribution: with ``burstiness`` 1 a Poisson process, lower comes in bursts,
    higher is steadier. An infinite rate sends all at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    dice = random.Random(seed)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + dice.gammavariate(burstiness, 1 / (rate * burstiness)))
    return times[:count]


async def model_name(server: Server) -> str:
    """The first model that the server lists. Raises :class:`ConfigError` where it lists none."""
    answer = await fetch(server, "GET", "/models")
    try:
        return str(json.loads(answer)["data"][0]["id"])
    except (ValueError, TypeError, KeyError, IndexError):
        raise ConfigError("the server lists no model; name it with --model.") from None


async def offer(
    server: Server, asking: Asking, jobs: Sequence[Job], most: int | None = None
) -> tuple[list[Seen], float]:
    """Send every job at its time ``at``, at most ``most`` under way at once; what was seen of each, in order, and
    the seconds from the first sending to the last answer.

    A request that has to wait for its turn is counted from when it is sent.
    """
    bodies = [asking.body(job) for job in jobs]
    turn = asyncio.Semaphore(most) if most else contextlib.nullcontext()
    began = time.perf_counter()

    async def send(job: Job, body: bytes) -> Seen:
        await asyncio.sleep(began + job.at - time.perf_counter())
        async with turn:
            return await _ask(server, asking, job, body)

    seen = await asyncio.gather(*(send(job, body) for job, body in zip(jobs, bodies, strict=True)))
    return list(seen), time.perf_counter() - began


async def _ask(server: Server, asking: Asking, job: Job, body: bytes) -> Seen:
    known = 0 if isinstance(job.prompt, str) else len(job.prompt)
    seen = Seen(sent=time.perf_counter(), input_tokens=known)
    try:
        async with asyncio.timeout(asking.timeout):
            async for data, now in _events(server, asking.path, body):
                _take(seen, data, now)
    except TimeoutError:
        seen.error = f"no answer after {asking.timeout:g} seconds"
    except (ExchangeError, msgspec.DecodeError) as error:
        seen.error = str(error)
    if seen.error is None and not seen.pieces:
        seen.error = "the answer holds no token"
    return seen


def _take(seen: Seen, data: bytes, now: float) -> None:
    chunk = _DECODER.decode(data)
    seen.finished = now
    if chunk.error is not None:
        raise ExchangeError(f"the stream ended with an error: {str(chunk.error)[:300]}")
    if chunk.usage is not None:
        seen.input_tokens = chunk.usage.prompt_tokens
        seen.output_tokens = chunk.usage.completion_tokens or 0
    if any(_has_token(choice) for choice in chunk.choices):
        seen.pieces.append(now)
        if chunk.usage is None:
            seen.output_tokens += 1  # until the server says better


def _has_token(choice: _Choice) -> bool:
    """A chat begins with a piece that names only the role; a token may as yet be no text in a completion."""
    if choice.delta is not None:
        return bool(choice.delta.content or choice.delta.reasoning_content)
    return bool(choice.text) or (choice.text is not None and choice.finish_reason is None)


async def _events(server: Server, path: str, body: bytes) -> AsyncIterator[tuple[bytes, float]]:
    """The data of server-sent events, each with the time at which it came. They end with ``[DONE]``."""
    rest, done = b"", False
    async with contextlib.aclosing(pieces(server, "POST", path, body)) as answer:
        async for piece in answer:
            now = time.perf_counter()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.strip()
                if data.startswith(b"data:"):
                    data = data[5:].strip()
                    done = data == b"[DONE]"
                    if not done:
                        yield data, now
    if not done:
        raise ExchangeError("the stream broke off: it does not end with [DONE]")
