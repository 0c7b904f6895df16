"""``/v1/score`` and ``/v1/rerank``: the cosine of embeddings, where the operator has turned that on."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from octavo.contracts.api import Embedding
from octavo.errors import RequestError
from octavo_api.answer import json_response
from octavo_api.embeddings import Embeddings, usage
from octavo_api.guard import Call, Guard
from octavo_api.routes import Route, posted
from octavo_api.schemas_completions import Prompt
from octavo_api.schemas_tokens import RerankBody, ScoreBody


@dataclass(frozen=True, slots=True)
class Scores:
    """The two handlers."""

    embeddings: Embeddings

    async def score(self, call: Call) -> Response:
        """``POST /v1/score``, as vLLM has it."""
        body = self.embeddings.accept(ScoreBody, call)
        model, adapter = self.embeddings.names.resolve(body.model)
        first, second = body.text_1, body.text_2
        if len(first) not in (1, len(second)):
            raise RequestError(
                f"text_1 must hold one text or as many as text_2 ({len(second)}), not {len(first)}.", param="text_1"
            )
        found = await self.embeddings.embed(call, body, [*first, *second], adapter)
        left, right = found[: len(first)], found[len(first) :]
        left = left * len(right) if len(left) == 1 else left
        data = [
            {"index": index, "object": "score", "score": cosine(*pair)}
            for index, pair in enumerate(zip(left, right, strict=True))
        ]
        return json_response({**_head("score-", model), "object": "list", "data": data, "usage": usage(found)})

    async def rerank(self, call: Call) -> Response:
        """``POST /v1/rerank``, as Jina, Cohere and vLLM have it."""
        body = self.embeddings.accept(RerankBody, call)
        model, adapter = self.embeddings.names.resolve(body.model)
        inputs: list[Prompt] = [body.query, *body.documents]
        query, *documents = found = await self.embeddings.embed(call, body, inputs, adapter)
        scores = [cosine(query, document) for document in documents]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = []
        for index in order[: body.top_n or None]:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if body.return_documents is not False:
                result["document"] = {"text": body.documents[index]}
            results.append(result)
        return json_response({**_head("rerank-", model), "results": results, "usage": usage(found)})


def cosine(left: Embedding, right: Embedding) -> float:
    """Of two vectors of length 1."""
    return float(left.values @ right.values)


def scoring_routes(guard: Guard, embeddings: Embeddings) -> list[Route]:
    """Both, under the paths that clients use."""
    scores = Scores(embeddings)
    return [
        *(
            posted(path, guard.generation, scores.score, ScoreBody, "How near texts are")
            for path in ("/v1/score", "/score")
        ),
        *(
            posted(path, guard.generation, scores.rerank, RerankBody, "Documents by their nearness to a query")
            for path in ("/v1/rerank", "/v2/rerank", "/rerank")
        ),
    ]


def _head(prefix: str, model: str) -> dict[str, Any]:
    return {"id": prefix + secrets.token_hex(14), "created": int(time.time()), "model": model}
