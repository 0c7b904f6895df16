"""From a request body to the engine and back: one file for both generation endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from octavo.contracts.api import Arrival, Delta, EngineClient
from octavo.errors import NotReadyError, RequestError
from octavo.params import SamplingParams
from octavo_api.answer import Collected, Head, Usage, json_response
from octavo_api.calling import offered_tools, read_as
from octavo_api.chat import ChatFrames, chat_object
from octavo_api.completions import CompletionFrames, Echo, completion_object
from octavo_api.guard import Call
from octavo_api.metrics import Metrics
from octavo_api.models import Names
from octavo_api.options import OpenAIOptions
from octavo_api.parse import parse
from octavo_api.sampling import chat_params, completion_params, within_room
from octavo_api.schemas import GenerationBody
from octavo_api.schemas_chat import ChatBody
from octavo_api.schemas_completions import CompletionBody
from octavo_api.sse import EventStream, Frames, events
from octavo_api.streams import Deltas, Primed, merge
from octavo_api.template_options import check_template_kwargs
from octavo_api.truncation import truncated
from octavo_api.unsupported import check_chat, check_completion


@dataclass(frozen=True, slots=True)
class Generation:
    """The two handlers, and what they need."""

    client: EngineClient
    options: OpenAIOptions
    names: Names
    metrics: Metrics

    async def chat(self, call: Call) -> Response:
        """``POST /v1/chat/completions``."""
        check_ready(self.client)
        body = parse(ChatBody, call.body)
        check_chat(body, ignore_unknown=self.options.unknown_fields == "ignore")
        model, adapter = self.names.resolve(body.model)
        params = chat_params(body, self.client.default_sampling, self.options)
        prompt = truncated(await self._render(body), body.truncate_prompt_tokens, self.client)
        params = within_room(params, self.options.default_max_tokens, self.client.max_length - len(prompt))
        params, reading = await read_as(body, params, prompt, self.client, self.options)
        deltas = self._generate(call, body, params, [prompt], adapter)
        head, usage = Head.new("chatcmpl-", model), Usage(self.options.report_cached_tokens)
        if body.stream:
            return await self._stream(call, deltas, ChatFrames(body, head, usage, reading))
        collected = await _collect(deltas, Collected.empty(1, params.n, usage, reading))
        return json_response(chat_object(body, head, collected, reading))

    async def completion(self, call: Call) -> Response:
        """``POST /v1/completions``."""
        check_ready(self.client)
        body = parse(CompletionBody, call.body)
        check_completion(body, ignore_unknown=self.options.unknown_fields == "ignore")
        if len(body.prompt) > self.options.max_prompts:
            raise RequestError(
                f"prompt may hold at most {self.options.max_prompts} prompts, not {len(body.prompt)}.",
                param="prompt",
            )
        model, adapter = self.names.resolve(body.model)
        params = completion_params(body, self.client.default_sampling, self.options)
        prompts = [await self._encode(body, prompt) for prompt in body.prompt]
        echoes = await self._echoes(body, prompts)
        deltas = self._generate(call, body, params, prompts, adapter)
        head, usage = Head.new("cmpl-", model), Usage(self.options.report_cached_tokens)
        if body.stream:
            return await self._stream(call, deltas, CompletionFrames(body, head, usage, params.n, echoes))
        collected = await _collect(deltas, Collected.empty(len(prompts), params.n, usage))
        return json_response(completion_object(body, head, collected, echoes))

    async def _render(self, body: ChatBody) -> list[int]:
        if not self.client.has_chat_template:
            raise RequestError("This model has no chat template; use /v1/completions.", param="messages")
        kwargs = body.chat_template_kwargs or {}
        check_template_kwargs(kwargs, self.options.template_kwargs)
        proceed = bool(body.continue_final_message)
        if proceed and body.add_generation_prompt:
            raise RequestError(
                "continue_final_message goes on with a message; add_generation_prompt begins another. Set one.",
                param="continue_final_message",
            )
        begin = not proceed if body.add_generation_prompt is None else body.add_generation_prompt
        return await self.client.render_chat(
            [message.for_template() for message in body.messages],
            tools=offered_tools(body, self.client),
            add_generation_prompt=begin,
            continue_final_message=proceed,
            template_options=kwargs or None,
        )

    async def _encode(self, body: CompletionBody, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt = await self.client.encode(prompt, add_special_tokens=body.add_special_tokens is not False)
        return truncated(prompt, body.truncate_prompt_tokens, self.client)

    async def _echoes(self, body: CompletionBody, prompts: Sequence[list[int]]) -> list[Echo]:
        if not body.echo:
            return []
        echoes = []
        for given, ids in zip(body.prompt, prompts, strict=True):
            whole = isinstance(given, str) and body.truncate_prompt_tokens is None
            text = given if isinstance(given, str) and whole else await self.client.decode(ids)
            echoes.append(Echo(text, await self.client.decode(ids[:1])))
        return echoes

    def _generate(
        self,
        call: Call,
        body: GenerationBody,
        params: SamplingParams,
        prompts: Sequence[list[int]],
        adapter: str | None,
    ) -> Deltas:
        streams: list[AsyncIterator[Delta]] = []
        for ids in prompts:
            stream = self.client.generate(
                ids,
                params,
                request_id=body.request_id or call.request_id,
                adapter=adapter,
                priority=body.priority or 0,
                cache_salt=body.cache_salt,
                arrival=Arrival(body.model, len(ids), call.headers, body.user),
                add_special_tokens=False,
            )
            streams.append(self.metrics.watch(call.received, params).follow(stream))
        return merge(streams)

    async def _stream(self, call: Call, deltas: Deltas, frames: Frames) -> Response:
        """The headers wait for the first delta, so that a refusal still has its status; but not for ever."""
        primed = Primed(deltas)
        await primed.wait(self.options.stream_keep_alive)
        return EventStream(
            events(primed, frames, call.request_id),
            request_id=call.request_id,
            keep_alive=self.options.stream_keep_alive,
            deadline=call.deadline,
        )


def check_ready(client: EngineClient) -> None:
    """Raise 503 while the engine starts, drains or is dead; so long nothing but its health may be asked."""
    health = client.health()
    if not health.ready:
        raise NotReadyError(f"The server takes no requests now: {health.reason or 'not ready'}.", retry_after=5)


async def _collect(deltas: Deltas, collected: Collected) -> Collected:
    try:
        async for prompt, delta in deltas:
            collected.add(prompt, delta)
    finally:
        await deltas.aclose()
    return collected
