"""``/v1/responses``: create, get, cancel and delete, over the chat route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response

from octavo.errors import RequestError
from octavo_api.answer import json_response
from octavo_api.chat_chunks import StreamFailed, chat_chunks
from octavo_api.errors import HttpError, failure
from octavo_api.generate import Generation, check_ready
from octavo_api.guard import Call, Guard
from octavo_api.parse import parse
from octavo_api.responses_events import Event, ResponseBuilder
from octavo_api.responses_request import NAMES, chat_fields
from octavo_api.responses_store import Kept, ResponseStore
from octavo_api.routes import Route, asked, posted
from octavo_api.schemas_chat import ChatBody
from octavo_api.schemas_responses import ResponseBody, to_messages
from octavo_api.sse import EventStream
from octavo_api.unsupported import check_chat


class Responses:
    """The handlers, and the responses that are kept."""

    def __init__(self, generation: Generation) -> None:
        options = generation.options
        self._generation = generation
        self._options = options
        self._store = ResponseStore(options.max_responses, options.response_ttl)

    async def create(self, call: Call) -> Response:
        """``POST /v1/responses``."""
        check_ready(self._generation.client)
        body = parse(ResponseBody, call.body)
        messages = [*self._earlier(body), *to_messages(body.input)]
        ignore = self._options.unknown_fields == "ignore"
        fields = chat_fields(body, messages, ignore_unknown=ignore)
        model, _ = self._generation.names.resolve(body.model)
        kept = Kept(ResponseBuilder(body, model), messages)
        if body.background:
            check_chat(parse(ChatBody, msgspec.json.encode(fields)), ignore_unknown=ignore)
            return self._in_background(call, body, kept, fields)
        chunks = await chat_chunks(self._generation, call, fields, NAMES)
        self._keep(body, kept)
        events = self._events(call, kept, chunks)
        if body.stream:
            return EventStream(
                _encoded(events),
                request_id=call.request_id,
                keep_alive=self._options.stream_keep_alive,
                deadline=call.deadline,
                last_words=_error_event,
            )
        async with aclosing(events):
            async for _ in events:
                pass
        error = kept.builder.response["error"]
        if error is not None:
            raise HttpError(500, error["message"], code=error["code"])
        return json_response(kept.builder.response)

    async def get(self, call: Call) -> Response:
        """``GET /v1/responses/{response_id}``: as far as it has come."""
        if call.query.get("stream", "false").lower() not in ("false", "0"):
            raise RequestError("A response that was created can't be streamed; ask again.", param="stream")
        return json_response(self._store.get(call.path["response_id"]).builder.response)

    async def cancel(self, call: Call) -> Response:
        """``POST /v1/responses/{response_id}/cancel``: the end of one in the background."""
        kept = self._store.get(call.path["response_id"])
        if kept.task is None:
            raise RequestError("Only responses in the background can be cancelled.", param="response_id")
        kept.task.cancel()
        await asyncio.gather(kept.task, return_exceptions=True)
        return json_response(kept.builder.response)

    async def delete(self, call: Call) -> Response:
        """``DELETE /v1/responses/{response_id}``."""
        kept = self._store.remove(call.path["response_id"])
        if kept.task is not None:
            kept.task.cancel()
        return json_response({"id": kept.builder.response["id"], "object": "response.deleted", "deleted": True})

    def _earlier(self, body: ResponseBody) -> list[dict[str, Any]]:
        """The conversation that the request goes on with."""
        if body.previous_response_id is None:
            return []
        try:
            kept = self._store.get(body.previous_response_id)
        except RequestError as error:
            error.param = "previous_response_id"
            raise
        if not kept.builder.done:
            raise RequestError("The previous response has not ended yet.", param="previous_response_id")
        return [*kept.messages, *to_messages(kept.builder.response["output"])]

    def _keep(self, body: ResponseBody, kept: Kept) -> None:
        if body.store is not False and self._options.max_responses:
            self._store.add(kept)
        else:
            kept.builder.response["store"] = False

    def _in_background(self, call: Call, body: ResponseBody, kept: Kept, fields: Mapping[str, Any]) -> Response:
        if body.store is False or not self._options.max_responses or body.stream:
            raise RequestError(
                "A response in the background must be stored, by a server that keeps responses, and can't be "
                "streamed.",
                param="background",
            )
        self._store.add(kept)
        kept.task = asyncio.create_task(self._work(call, kept, fields))
        return json_response(kept.builder.response)

    async def _work(self, call: Call, kept: Kept, fields: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout_at(call.deadline):
                events = self._events(call, kept, await chat_chunks(self._generation, call, fields, NAMES))
                async with aclosing(events):
                    async for _ in events:
                        pass
        except Exception as error:
            about = failure(error, call.request_id)
            list(kept.builder.fail(about.message, about.code))
        finally:
            kept.builder.cancel()
            self._store.settle(kept)

    async def _events(
        self, call: Call, kept: Kept, chunks: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[Event, None]:
        builder = kept.builder
        try:
            for event in builder.begin():
                yield event
            async for chunk in chunks:
                for event in builder.chunk(chunk):
                    yield event
            for event in builder.end():
                yield event
        except StreamFailed as error:
            for event in builder.fail(str(error), error.detail.get("code")):
                yield event
        except Exception as error:
            about = failure(error, call.request_id)
            for event in builder.fail(about.message, about.code):
                yield event
        finally:
            await chunks.aclose()
            builder.cancel()
            self._store.settle(kept)


def response_routes(guard: Guard, generation: Generation) -> list[Route]:
    """All of them."""
    responses = Responses(generation)
    one = "/v1/responses/{response_id}"
    cancel = f"{one}/cancel"
    return [
        posted("/v1/responses", guard.generation, responses.create, ResponseBody, "Create a response"),
        replace(asked(one, guard.keyed, responses.get, "A kept response", browsers=True), refuses=True),
        Route(method="DELETE", path=one, endpoint=guard.keyed(one, responses.delete), summary="Forget a response"),
        Route(
            method="POST",
            path=cancel,
            endpoint=guard.keyed(cancel, responses.cancel),
            summary="Cancel a response that is made in the background",
            refuses=True,
        ),
    ]


async def _encoded(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            yield encode_event(event)


def encode_event(event: Mapping[str, Any]) -> bytes:
    """A server-sent event named as its type."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


def _error_event(error: BaseException, request_id: str) -> bytes:
    about = failure(error, request_id)
    detail = {"code": about.code, "message": about.message, "param": about.param, "sequence_number": -1}
    return encode_event({"type": "error", **detail})
