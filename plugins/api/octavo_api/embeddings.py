"""``/v1/embeddings``, and the vectors that scores are made of."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from starlette.responses import Response

from octavo.contracts.api import Arrival, Embedding, EngineClient
from octavo.errors import RequestError
from octavo_api.answer import json_response
from octavo_api.generate import check_ready
from octavo_api.guard import Call
from octavo_api.metrics import Metrics
from octavo_api.models import Names
from octavo_api.options import OpenAIOptions
from octavo_api.parse import parse
from octavo_api.schemas_completions import Prompt
from octavo_api.schemas_tokens import EmbeddingBody, PoolingBody
from octavo_api.truncation import truncated
from octavo_api.unsupported import check_extras

B = TypeVar("B", bound=PoolingBody)

AT_ONCE: Final = 128
"""Inputs of one call that are in the engine at a time."""

_UNSUPPORTED: Final[dict[str, Sequence[Any]]] = {"embed_dtype": ("float32",), "endianness": ("little", "native")}


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The handler, and what it needs."""

    client: EngineClient
    options: OpenAIOptions
    names: Names
    metrics: Metrics

    async def embeddings(self, call: Call) -> Response:
        """``POST /v1/embeddings``."""
        body = self.accept(EmbeddingBody, call)
        model, adapter = self.names.resolve(body.model)
        found = await self.embed(
            call,
            body,
            body.input,
            adapter,
            dimensions=body.dimensions,
            normalize=body.normalize is not False,
        )
        encode = _base64 if body.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": encode(one.values)}
            for index, one in enumerate(found)
        ]
        return json_response({"object": "list", "data": data, "model": model, "usage": usage(found)})

    def accept(self, kind: type[B], call: Call) -> B:
        """The request's body. Raises :class:`RequestError`."""
        check_ready(self.client)
        body = parse(kind, call.body)
        check_extras(body, _UNSUPPORTED, "", ignore_unknown=self.options.unknown_fields == "ignore")
        return body

    async def embed(
        self,
        call: Call,
        body: PoolingBody,
        inputs: Sequence[Prompt],
        adapter: str | None,
        *,
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> list[Embedding]:
        """Vectors of ``inputs``, in order. The first that is refused ends them all."""
        if len(inputs) > self.options.max_inputs:
            raise RequestError(
                f"there may be at most {self.options.max_inputs} inputs, not {len(inputs)}.", param="input"
            )
        found: list[Embedding | None] = [None] * len(inputs)
        waiting = iter(enumerate(inputs))

        async def work() -> None:
            for index, prompt in waiting:
                ids = await self._ids(body, prompt)
                found[index] = await self.client.embed(
                    ids,
                    pooling=body.pooling,
                    dimensions=dimensions,
                    normalize=normalize,
                    request_id=call.request_id,
                    adapter=adapter,
                    priority=body.priority or 0,
                    cache_salt=body.cache_salt,
                    arrival=Arrival(body.model, len(ids), call.headers, body.user),
                    add_special_tokens=False,
                )

        await together([work() for _ in range(min(AT_ONCE, len(inputs)))])
        done = [one for one in found if one is not None]
        self.metrics.embedded(done)
        return done

    async def _ids(self, body: PoolingBody, prompt: Prompt) -> list[int]:
        ids = (
            await self.client.encode(prompt, add_special_tokens=body.add_special_tokens is not False)
            if isinstance(prompt, str)
            else prompt
        )
        return truncated(ids, body.truncate_prompt_tokens, self.client)


async def together(work: Sequence[Any]) -> None:
    """Await all coroutines; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def usage(found: Sequence[Embedding]) -> dict[str, int]:
    """The ``usage`` object."""
    total = sum(one.prompt_tokens for one in found)
    return {"prompt_tokens": total, "total_tokens": total}


def _floats(values: np.ndarray) -> list[float]:
    numbers: list[float] = values.tolist()
    return numbers


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
